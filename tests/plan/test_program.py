"""Programs small enough to count by hand, in the form that XLA prints them."""

import textwrap

import pytest

from reid_jax.plan import hlo
from reid_jax.plan.program import Program, count

HEAD = "HloModule jit_step, is_scheduled=true"


def program(entry, *others, head=HEAD):
    """A program of the lines of its entry, and of whole other computations."""
    body = textwrap.indent(textwrap.dedent(entry).strip(), "  ")
    texts = (textwrap.dedent(text).strip() for text in others)
    return Program(
        "\n\n".join([head, *texts, f"ENTRY %main (p: f32[]) -> f32[] {{\n{body}\n}}"])
    )


@pytest.mark.parametrize(
    ("shape", "plain", "stored", "in_hbm"),
    [
        ("f32[8,128]{1,0:T(8,128)}", 4096, 4096, 4096),
        # 5 x 192 fills 8 x 256: rows to eights, columns to whole lanes.
        ("f32[5,192]{1,0:T(8,128)}", 3840, 8 * 256 * 4, 8 * 256 * 4),
        # The other order: 192 rows of 5.
        ("f32[5,192]{0,1:T(8,128)}", 3840, 192 * 128 * 4, 192 * 128 * 4),
        ("bf16[2,9,130]{2,1,0:T(8,128)(2,1)}", 4680, 16384, 16384),
        ("bf16[16,128]{1,0:T(8,128)(2,1)S(1)}", 4096, 4096, 0),
        ("f32[192]{0:T(256)}", 768, 1024, 1024),
        ("f32[3,7]{1,0}", 84, 84, 84),  # a GPU's: no tiles
        ("pred[10]{0}", 10, 10, 10),
        ("f8e4m3fn[10]{0}", 10, 10, 10),
        ("f32[]", 4, 4, 4),
    ],
)
def test_bytes_of_arrays(shape, plain, stored, in_hbm):
    (array,) = hlo._arrays(shape)
    assert (array.plain, array.stored, array.in_hbm) == (plain, stored, in_hbm)


def test_only_what_lies_in_hbm_is_traffic():
    found = program(
        """
        %p = f32[8,128]{1,0:T(8,128)} parameter(0)
        %a = f32[8,128]{1,0:T(8,128)S(1)} add(%p, %p)
        %b = f32[8,128]{1,0:T(8,128)S(1)} multiply(%a, %a)
        %c = f32[128,8]{0,1:T(8,128)S(1)} bitcast(%b)
        ROOT %d = f32[8,128]{1,0:T(8,128)} negate(%b)
        """
    )
    assert found.hbm_bytes() == 2 * 4096 + 4096


def test_prefetches_are_traffic_once():
    array, fast = "f32[8,128]{1,0:T(8,128)}", "f32[8,128]{1,0:T(8,128)S(1)}"
    found = program(
        f"""
        %p = {array} parameter(0)
        %q = f32[64,128]{{1,0:T(8,128)}} parameter(1)
        %s = ({fast}, {array}, u32[]{{:S(2)}}) copy-start(%p)
        %t = ((f32[64,128]{{1,0:T(8,128)}}), {fast}, s32[]{{:S(2)}}) \
slice-start(%q), slice={{[0:8], [0:128]}}
        %u = {fast} copy-done(%s)
        %v = {fast} slice-done(%t)
        ROOT %w = {fast} add(%u, %v)
        """
    )
    assert found.hbm_bytes() == 4096 + 4096


LOOP = """
    %body (b: (s32[], f32[4,8,128])) -> (s32[], f32[4,8,128]) {
      %b = (s32[], f32[4,8,128]{2,1,0}) parameter(0)
      %i = s32[] get-tuple-element(%b), index=0
      %all = f32[4,8,128]{2,1,0} get-tuple-element(%b), index=1
      %f = f32[8,128]{1,0} fusion(%all, %i), kind=kLoop, calls=%look
      %g = f32[4,8,128]{2,1,0} all-gather(%f), channel_id=7, dimensions={0}
      ROOT %r = (s32[], f32[4,8,128]{2,1,0}) tuple(%i, %g)
    }
    """
LOOK = """
    %look (x: f32[4,8,128], y: s32[]) -> f32[8,128] {
      %x = f32[4,8,128]{2,1,0} parameter(0)
      %y = s32[] parameter(1)
      %s = f32[1,8,128]{2,1,0} dynamic-slice(%x, %y), dynamic_slice_sizes={1,8,128}
      ROOT %n = f32[8,128]{1,0} bitcast(%s)
    }
    """
CONDITION = """
    %until (c: (s32[], f32[4,8,128])) -> pred[] {
      %limit = s32[]{:T(128)} constant(5)
      %c = (s32[], f32[4,8,128]{2,1,0}) parameter(0)
      %j = s32[] get-tuple-element(%c), index=0
      ROOT %lt = pred[] compare(%j, %limit), direction=LT
    }
    """


@pytest.mark.parametrize("known", [True, False])
def test_loops_count_as_often_as_they_run(known):
    told = ', backend_config={"known_trip_count":{"n":"5"}}' if known else ""
    condition = CONDITION.replace("constant(5)", "constant(6)") if known else CONDITION
    found = program(
        f"""
        %p = (s32[], f32[4,8,128]{{2,1,0}}) parameter(0)
        ROOT %w = (s32[], f32[4,8,128]{{2,1,0}}) while(%p), condition=%until, \
body=%body{told}
        """,
        *(LOOK, LOOP, condition),
    )
    # A round: the slice read, its copy written, with the loop's index; then gathered.
    assert found.hbm_bytes() == 5 * ((4096 + 4 + 4096) + (4096 + 16384))
    (gather,) = found.collectives()
    assert (gather.kind, gather.times) == ("all-gather", 5)
    assert gather.sent(4) == 5 * 16384 * 3 / 4


def test_a_collective_in_several_fusions_is_one():
    part = """
    %part.{n} (x: f32[8,128]) -> f32[32,128] {{
      %x = f32[8,128]{{1,0}} parameter(0)
      ROOT %g.{n} = f32[32,128]{{1,0}} all-gather(%x), channel_id=92, \
dimensions={{0}}, metadata={{op_name="jit(step)/triplet/dot_general"}}
    }}
    """
    found = program(
        """
        %p = f32[8,128]{1,0} parameter(0)
        %a = f32[32,128]{1,0} fusion(%p), kind=kCustom, calls=%part.1
        %b = f32[32,128]{1,0} fusion(%p), kind=kCustom, calls=%part.2
        ROOT %c = f32[8,128]{1,0} all-reduce(%p), channel_id=93, to_apply=%add
        """,
        *(part.format(n=n) for n in (1, 2)),
    )
    assert [c.kind for c in found.collectives()] == ["all-gather", "all-reduce"]
    assert found.collectives()[0].op_name == "jit(step)/triplet/dot_general"
    counted = count(found.collectives(), 4)
    assert counted["all-gather"] == {"count": 1, "bytes": 3 / 4 * 16384}
    assert counted["all-reduce"] == {"count": 1, "bytes": 2 * 3 / 4 * 4096}


def test_a_reduction_whose_rest_is_cut_off_scatters():
    found = program(
        """
        %p = f32[32,128]{1,0} parameter(0)
        ROOT %a = f32[8,128]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.3
        """,
        """
        %all-reduce-scatter.3 (x: f32[32,128]) -> f32[8,128] {
          %x = f32[32,128]{1,0} parameter(0)
          %g = f32[32,128]{1,0} all-reduce(%x), channel_id=4, to_apply=%add
          %i = s32[] constant(0)
          ROOT %s = f32[8,128]{1,0} dynamic-slice(%g, %i), dynamic_slice_sizes={8,128}
        }
        """,
    )
    (one,) = found.collectives()
    # Each of four chips sends the three quarters that the others keep.
    assert (one.kind, one.sent(4)) == ("reduce-scatter", 3 * 4096)


def test_collectives_that_are_started():
    small, large = "f32[8,128]{1,0}", "f32[32,128]{1,0}"
    found = program(
        f"""
        %p = {small} parameter(0)
        %g = ({small}, {large}) all-gather-start(%p), channel_id=1
        %h = {large} all-gather-done(%g)
        %r = {small} all-reduce-start(%p), channel_id=2
        %s = {small} all-reduce-done(%r)
        %c = ({small}, {small}, u32[], u32[]) collective-permute-start(%p), channel_id=3
        ROOT %d = {small} collective-permute-done(%c)
        """
    )
    sent = {c.kind: c.sent(4) for c in found.collectives()}
    assert sent == {
        "all-gather": 3 / 4 * 16384,
        "all-reduce": 3 / 2 * 4096,
        "collective-permute": 4096,
    }
    # Each reads what it sends, and writes what it gets.
    assert found.hbm_bytes() == (4096 + 16384) + 2 * (4096 + 4096)


def test_a_library_s_workspace_is_no_traffic():
    found = program(
        """
        %p = f32[8,128]{1,0} parameter(0)
        ROOT %g = (f32[8,128]{1,0}, s8[33554432]{0}) custom-call(%p, %p), \
custom_call_target="__cublas$gemm"
        """
    )
    assert found.hbm_bytes() == 3 * 4096


def test_an_update_that_no_fusion_holds_is_in_place_too():
    found = program(
        """
        %p = f32[64,128]{1,0} parameter(0)
        %q = f32[8,128]{1,0} parameter(1)
        %i = s32[] parameter(2)
        ROOT %u = f32[64,128]{1,0} dynamic-update-slice(%p, %q, %i, %i)
        """
    )
    assert found.hbm_bytes() == 4096 + 4096 + 2 * 4  # read, written, and where


def test_what_is_updated_in_place_stays():
    update = """
    %update (x: f32[64,128], y: f32[8,128], i: s32[]) -> f32[64,128] {
      %x = f32[64,128]{1,0} parameter(0)
      %y = f32[8,128]{1,0} parameter(1)
      %i = s32[] parameter(2)
      ROOT %d = f32[64,128]{1,0} dynamic-update-slice(%x, %y, %i, %i)
    }
    """
    found = program(
        """
        %p = f32[64,128]{1,0} parameter(0)
        %q = f32[8,128]{1,0} parameter(1)
        %i = s32[] parameter(2)
        ROOT %u = f32[64,128]{1,0} fusion(%p, %q, %i), kind=kLoop, calls=%update
        """,
        update,
    )
    assert found.hbm_bytes() == 4096 + 4096 + 4  # read, written, and where


def test_what_a_loop_stacks_is_traffic_once():
    """A fusion writes a layer of two stacks and reads one of a third within another."""
    fusions = """
    %layer (s: STACK, i: s32[]) -> LAYER {
      %s = STACK parameter(0)
      %i = s32[] parameter(1)
      %c = STACK bitcast(%s)
      %d = f32[1,64,128]{2,1,0} dynamic-slice(%c, %i, %i, %i)
      ROOT %b = LAYER bitcast(%d)
    }
    %stack (s: STACK, t: STACK, u: STACK, i: s32[]) -> (STACK, STACK, LAYER) {
      %s = STACK parameter(0)
      %t = STACK parameter(1)
      %u = STACK parameter(2)
      %i = s32[] parameter(3)
      %x = LAYER fusion(%u, %i), kind=kLoop, calls=%layer
      %y = f32[1,64,128]{2,1,0} bitcast(%x)
      %d = STACK dynamic-update-slice(%s, %y, %i, %i, %i)
      %e = STACK dynamic-update-slice(%t, %y, %i, %i, %i)
      %f = STACK bitcast(%e)
      ROOT %r = (STACK, STACK, LAYER) tuple(%d, %f, %x)
    }
    """
    main = """
        %p = STACK parameter(0)
        %q = STACK parameter(1)
        %o = STACK parameter(2)
        %i = s32[] parameter(3)
        ROOT %u = (STACK, STACK, LAYER) fusion(%p, %q, %o, %i), calls=%stack
        """
    texts = (main, fusions)
    for name, array in (
        ("STACK", "f32[12,64,128]{2,1,0}"),
        ("LAYER", "f32[64,128]{1,0}"),
    ):
        texts = [text.replace(name, array) for text in texts]
    layer = 4 * 64 * 128
    assert program(*texts).hbm_bytes() == layer + 3 * layer + 4  # read, written, where


def test_a_branch_counts_as_the_costliest():
    branch = """
    %branch.{n} (x: f32[{n},128]) -> f32[] {{
      %x = f32[{n},128]{{1,0}} parameter(0)
      ROOT %r = f32[] reduce(%x), to_apply=%add
    }}
    """
    found = program(
        """
        %p = f32[] parameter(0)
        ROOT %c = f32[] conditional(%p, %p, %p), branch_computations={%branch.2, \
%branch.8}
        """,
        *(branch.format(n=n) for n in (2, 8)),
    )
    assert found.hbm_bytes() == 8 * 512 + 4


def test_the_largest_buffers_and_who_makes_them():
    found = program(
        """
        %p = f32[1024,128]{1,0} parameter(0)
        %a = f32[8,128]{1,0} add(%p, %p), metadata={op_name="jit(step)/heads/add"}
        %b = f32[64,128]{1,0} dot(%p, %p), metadata={op_name="jit(step)/blocks_0/dot"}
        %c = f32[99,128]{1,0:S(1)} dot(%p, %p)
        ROOT %t = (f32[8,128]{1,0}, f32[64,128]{1,0}) tuple(%a, %b)
        """
    )
    assert [(line.op_name, size) for line, size in found.largest(2)] == [
        ("jit(step)/blocks_0/dot", 64 * 512),
        ("jit(step)/heads/add", 8 * 512),
    ]


def test_donation_and_dtypes():
    head = (
        "HloModule jit_step, input_output_alias={ {0}: (0, {}, may-alias), "
        "{1}: (2, {}, may-alias) }, entry_computation_layout={(f32[2])->f32[2]}"
    )
    found = program("ROOT %p = bf16[2]{0} parameter(0)", head=head)
    assert found.aliased == 2
    assert found.dtypes() == {"bf16"}
    assert program("ROOT %p = f64[2]{0} parameter(0)").aliased == 0


def test_what_is_no_program():
    with pytest.raises(ValueError, match="no text of a compiled program"):
        Program("<html>")
