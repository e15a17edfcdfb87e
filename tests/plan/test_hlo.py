"""Counts of a compiled program's text are those made by hand.

An instruction stands in one line of the text; here a backslash goes on with it in the next."""

import pytest

from jaxedit.plan.count import LoopHints, count_program
from jaxedit.plan.hlo import parse_module, trip_count

LOOPS = """HloModule jit_f, is_scheduled=true, num_partitions=8

%fused (p.0: f32[16,8,4], p.1: s32[]) -> f32[8,4] {
  %p.0 = f32[16,8,4]{2,1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  %slice = f32[1,8,4]{2,1,0} dynamic-slice(%p.0, %p.1, %zero.1, %zero.1), \
dynamic_slice_sizes={1,8,4}
  ROOT %flat = f32[8,4]{1,0} bitcast(%slice)
}

%plus (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%body (b: (s32[], f32[8,4], f32[16,8,4], s32[])) -> (s32[], f32[8,4], f32[16,8,4], s32[]) {
  %b = (s32[], f32[8,4]{1,0}, /*index=2*/f32[16,8,4]{2,1,0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %h = f32[8,4]{1,0} get-tuple-element(%b), index=1
  %w = f32[16,8,4]{2,1,0} get-tuple-element(%b), index=2
  %n = s32[] get-tuple-element(%b), index=3
  %w.i = f32[8,4]{1,0} fusion(%w, %i), kind=kLoop, calls=%fused
  %dot = f32[8,8]{1,0} dot(%h, %w.i), lhs_contracting_dims={1}, rhs_contracting_dims={1}, \
operand_precision={highest,highest}
  %all = f32[8,8]{1,0} all-reduce(%dot), channel_id=1, replica_groups=GROUPS, to_apply=%plus, \
metadata={op_name="f/dot"}
  %new = f32[8,4]{1,0} slice(%all), slice={[0:8], [0:4]}
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %out = (s32[], f32[8,4]{1,0}, f32[16,8,4]{2,1,0}, s32[]) tuple(%next, %new, %w, %n)
}

%test (t: (s32[], f32[8,4], f32[16,8,4], s32[])) -> pred[] {
  %t = (s32[], f32[8,4]{1,0}, f32[16,8,4]{2,1,0}, s32[]) parameter(0)
  %i.1 = s32[] get-tuple-element(%t), index=0
  %n.1 = s32[] get-tuple-element(%t), index=3
  ROOT %less = pred[] compare(%i.1, %n.1), direction=LT
}

ENTRY %main (h0: f32[8,4], w0: f32[16,8,4], n0: s32[]) -> f32[8,4] {
  %h0 = f32[8,4]{1,0} parameter(0)
  %w0 = f32[16,8,4]{2,1,0} parameter(1)
  %n0 = s32[] parameter(2)
  %first = s32[] constant(2)
  %last = s32[] constant(16)
  %in = (s32[], f32[8,4]{1,0}, f32[16,8,4]{2,1,0}, s32[]) tuple(%first, %h0, %w0, END)
  %loop = (s32[], f32[8,4]{1,0}, f32[16,8,4]{2,1,0}, s32[]) while(%in), condition=%test, body=%body
  ROOT %result = f32[8,4]{1,0} get-tuple-element(%loop), index=1
}
"""


def program(end="%last", groups="{{0,1,2,3},{4,5,6,7}}") -> str:
    return LOOPS.replace("END", end).replace("GROUPS", groups)


def test_a_loop_counts_as_often_as_it_runs():
    """Its counter starts at 2 and ends at 16, as the tuple says that the loop is given."""
    cost = count_program(program())
    assert cost.products == {6: 14 * 2 * 8 * 8 * 4}
    assert cost.sent == {("all-reduce f32[8,8]", "f/dot"): 14 * 2 * 3 / 4 * 8 * 8 * 4}
    assert not cost.unknown


def test_a_loop_moves_what_its_body_moves():
    cost = count_program(program())
    layer, square = 8 * 4 * 4, 8 * 8 * 4
    weight, new = 2 * layer, 2 * layer  # taken from a stack, and from the product
    dot, all_reduce = 2 * layer + square, 2 * square
    counter, comparison = 3 * 4, 2 * 4 + 1
    body = weight + dot + all_reduce + new + counter
    assert cost.moved_bytes == pytest.approx(14 * body, abs=14 * (comparison + 8))


def test_a_loop_without_a_known_end_counts_once_and_is_named():
    cost = count_program(program(end="%n0"))
    assert cost.unknown == {"loop"}
    assert cost.flops == 2 * 8 * 8 * 4


def test_a_loop_without_a_known_end_counts_as_often_as_the_hint_says():
    cost = count_program(program(end="%n0"), LoopHints(trips=5))
    assert not cost.unknown
    assert cost.flops == 5 * 2 * 8 * 8 * 4


def test_the_compilers_own_trip_count_comes_first():
    noted = program(end="%n0").replace(
        "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}'
    )
    module = parse_module(noted)
    entry = module.computations[module.entry]
    assert trip_count(module, entry, entry.instructions["loop"], {}) == 3


@pytest.mark.parametrize(
    ("groups", "n"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", 2),
        ("[2,4]<=[8]", 4),
        ("[4,2]<=[2,4]T(1,0)", 2),
        ("mesh['axis_0'=1,'axis_1'=2,'axis_2'=4] {'axis_2'}", 4),
        ("mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("mesh['a'=2,'b'=4] {'b':(1)2}", 2),
        ("mesh['a'=1,'b'=2,'c'=4], device_ids=([4,2]T(1,0)) {'b'}", 2),
        ("{}", 8),
    ],
)
def test_a_groups_size_is_read_in_every_notation(groups, n):
    assert count_program(program(groups=groups)).sent_bytes == 14 * 2 * (n - 1) / n * 8 * 8 * 4


def test_groups_in_an_unknown_notation_are_an_error():
    with pytest.raises(ValueError, match="unknown form"):
        count_program(program(groups="pairs of four"))


COLLECTIVE = """HloModule jit_f, num_partitions=4

%starts (p: bf16[2,8]) -> (bf16[2,8], bf16[8,8]) {
  %p = bf16[2,8]{1,0} parameter(0)
  %gather.1 = bf16[8,8]{1,0} all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4], \
dimensions={0}
  ROOT %call = (bf16[2,8]{1,0}, bf16[8,8]{1,0}) custom-call(%gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%beside (q: bf16[2,8], r: bf16[8,8], s: bf16[4,8]) -> (f32[4,4], bf16[8,8]) {
  %q = bf16[2,8]{1,0} parameter(0)
  %r = bf16[8,8]{1,0} parameter(1)
  %s = bf16[4,8]{1,0} parameter(2)
  %gather.2 = bf16[8,8]{1,0} all-gather(%q), channel_id=7, replica_groups=[1,4]<=[4], \
dimensions={0}
  %product = f32[4,4]{1,0} convolution(%s, %s), dim_labels=bf_oi->bf
  ROOT %both = (f32[4,4]{1,0}, bf16[8,8]{1,0}) tuple(%product, %r)
}

ENTRY %main (a: bf16[2,8], b: bf16[4,8]) -> f32[4,4] {
  %a = bf16[2,8]{1,0} parameter(0)
  %b = bf16[4,8]{1,0} parameter(1)
  %start = (bf16[2,8]{1,0}, bf16[8,8]{1,0:T(8,128)S(1)}) fusion(%a), kind=kCustom, calls=%starts
  %part = bf16[2,8]{1,0} get-tuple-element(%start), index=0
  %whole = bf16[8,8]{1,0:T(8,128)S(1)} get-tuple-element(%start), index=1
  %mid = (f32[4,4]{1,0}, bf16[8,8]{1,0:T(8,128)S(1)}) fusion(%part, %whole, %b), kind=kCustom, \
calls=%beside
  ROOT %done = f32[4,4]{1,0} get-tuple-element(%mid), index=0
}
"""


def test_an_asynchronous_collective_counts_once():
    """It stands in the fusion that starts it, and in the one with a product that it runs beside."""
    cost = count_program(COLLECTIVE)
    assert cost.sent_bytes == 3 * 2 * 8 * 2
    assert cost.products == {1: 2 * 4 * 4 * 8}


def test_a_convolutions_padding_is_not_multiplied():
    """Attention's scores on a TPU: 16 x 4 products of 128 x 128 by 128, in a padded window."""
    text = """HloModule jit_f

ENTRY %main (a: f32[16,4,128,128], b: f32[16,4,128,128]) -> f32[16,4,128,128] {
  %a = f32[16,4,128,128]{3,2,1,0} parameter(0)
  %b = f32[16,4,128,128]{3,2,1,0} parameter(1)
  ROOT %c = f32[16,4,128,128]{3,2,1,0} convolution(%a, %b), \
window={size=16x4 stride=15x3 lhs_dilate=16x4}, dim_labels=01bf_01oi->01bf, \
operand_precision={highest,highest}
}
"""
    assert count_program(text).products == {6: 16 * 4 * 2 * 128 * 128 * 128}


BRANCHES = """HloModule jit_f

%rare (p: f32[4,4]) -> f32[4,4] {
  %p = f32[4,4]{1,0} parameter(0)
  ROOT %d = f32[4,4]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%usual (q: f32[4,4]) -> f32[4,4] {
  ROOT %q = f32[4,4]{1,0} parameter(0)
}

ENTRY %main (i: s32[], a: f32[4,4]) -> f32[4,4] {
  %i = s32[] parameter(0)
  %a = f32[4,4]{1,0} parameter(1)
  ROOT %c = f32[4,4]{1,0} conditional(%i, %a, %a), CALLED
}
"""


@pytest.mark.parametrize(
    "called",
    ["branch_computations={%usual, %rare}", "true_computation=%rare, false_computation=%usual"],
)
def test_the_larger_branch_counts_in_its_share(called):
    text = BRANCHES.replace("CALLED", called)
    assert count_program(text).flops == 2 * 4**3
    assert count_program(text, LoopHints(branch_share=0.25)).flops == 2 * 4**3 / 4


REDUCE_SCATTER = """HloModule jit_f, num_partitions=4

%plus (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%NAME (p: f32[8,4], i: s32[]) -> f32[2,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %all = f32[8,4]{1,0} all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%plus
  ROOT %own = f32[2,4]{1,0} dynamic-slice(%all, %i, %zero), dynamic_slice_sizes={2,4}
}

ENTRY %main (a: f32[8,4], n: s32[]) -> f32[2,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %n = s32[] parameter(1)
  ROOT %part = f32[2,4]{1,0} fusion(%a, %n), kind=kCustom, calls=%NAME
}
"""


@pytest.mark.parametrize(("name", "rounds"), [("all-reduce-scatter.1", 1), ("fused", 2)])
def test_an_all_reduce_fused_with_its_slice_sends_what_a_reduce_scatter_sends(name, rounds):
    cost = count_program(REDUCE_SCATTER.replace("NAME", name))
    assert cost.sent_bytes == rounds * 3 / 4 * 8 * 4 * 4


UPDATES = """HloModule jit_f

%in_place (p: f32[16,8], u: f32[1,8], i: s32[]) -> f32[16,8] {
  %p = f32[16,8]{1,0} parameter(0)
  %u = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %new = f32[16,8]{1,0} dynamic-update-slice(%p, %u, %i, %zero)
}

ENTRY %main (a: f32[16,8], b: f32[1,8], n: s32[]) -> f32[16,8] {
  %a = f32[16,8]{1,0} parameter(0)
  %b = f32[1,8]{1,0} parameter(1)
  %n = s32[] parameter(2)
  ROOT %result = f32[16,8]{1,0} INSTRUCTION
}
"""
ROW_BYTES = 8 * 4
INDEX_BYTES = 4  # which row it is


@pytest.mark.parametrize(
    ("instruction", "n_bytes"),
    [
        ("dynamic-update-slice(%a, %b, %n, %n)", 2 * ROW_BYTES),
        ("scatter(%a, %n, %b)", 2 * ROW_BYTES),
        ("fusion(%a, %b, %n), kind=kLoop, calls=%in_place", 2 * ROW_BYTES + INDEX_BYTES),
        ("negate(%a)", 2 * 16 * ROW_BYTES),
    ],
)
def test_an_update_in_place_moves_only_what_it_changes(instruction, n_bytes):
    assert count_program(UPDATES.replace("INSTRUCTION", instruction)).moved_bytes == n_bytes


def test_what_the_compiler_keeps_on_the_chip_is_not_moved():
    """Only the copy onto the chip reads the main memory, where it ends."""
    text = """HloModule jit_f

ENTRY %main (a: f32[16,8]) -> f32[16,8] {
  %a = f32[16,8]{1,0} parameter(0)
  %start = (f32[16,8]{1,0:S(1)}, f32[16,8]{1,0}, u32[]{:S(2)}) copy-start(%a)
  %near = f32[16,8]{1,0:S(1)} copy-done(%start)
  ROOT %result = f32[16,8]{1,0:S(1)} negate(%near)
}
"""
    assert count_program(text).moved_bytes == 16 * ROW_BYTES


def test_a_text_without_an_entry_computation_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        count_program("module { func.func }")
