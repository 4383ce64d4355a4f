"""A gallery of embedded images that can be searched and reviewed, on Milvus.

`milvus` opens a connection, `gallery` is what is kept there, in the `layout` of fields,
`rows` and `parquet` what is added, `query` and `check` what is asked; `strip` draws it,
`command` has the verbs. `web`, `review`, `page.html` and `marks` are the review page.
"""
