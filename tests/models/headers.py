"""The table of rows that opens a paper's module."""

import ast


def rows_of_header(text):
    """Rows of a table of `NAME  field=value, ...`, as `ROWS` of the config has them."""
    (table,) = (b for b in text.split("\n\n") if b.lstrip().startswith("row  "))
    listed = {}
    for line in table.splitlines()[1:]:
        name, fields = line.split(maxsplit=1)
        fields = "" if fields == "the defaults" else fields
        call = ast.parse(f"row({fields})", mode="eval").body
        listed[name] = {
            f"model.{field.arg}": ast.literal_eval(field.value)
            for field in call.keywords
        }
    return listed
