"""Counting a compiled program's text, against counts by hand."""

import pytest

from jaxedit.plan.count import LoopHints, count
from jaxedit.plan.hlo import parse, trip_count

LOOPS = """HloModule jit_f, is_scheduled=true, num_partitions=8

%fused (p.0: f32[16,8,4], p.1: s32[]) -> f32[8,4] {
  %p.0 = f32[16,8,4]{2,1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  %slice = f32[1,8,4]{2,1,0} dynamic-slice(%p.0, %p.1, %zero.1, %zero.1), dynamic_slice_sizes={1,8,4}
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
  %dot = f32[8,8]{1,0} dot(%h, %w.i), lhs_contracting_dims={1}, rhs_contracting_dims={1}, operand_precision={highest,highest}
  %all = f32[8,8]{1,0} all-reduce(%dot), channel_id=1, replica_groups=GROUPS, to_apply=%plus, metadata={op_name="f/dot"}
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
    """Its end stands in the tuple that it is given, its start too: 14 times."""
    cost = count(program())
    assert cost.products == {6: 14 * 2 * 8 * 8 * 4}
    assert cost.sent == {("all-reduce f32[8,8]", "f/dot"): 14 * 2 * 3 / 4 * 8 * 8 * 4}
    layer, square = 8 * 4 * 4, 8 * 8 * 4
    fusion, dot, all_reduce, new, counters = (
        2 * layer,
        2 * layer + square,
        2 * square,
        2 * layer,
        3 * 4,
    )
    test = 2 * 4 + 1
    assert cost.moved_bytes == pytest.approx(
        14 * (fusion + dot + all_reduce + new + counters), abs=14 * (test + 8)
    )
    assert not cost.unknown


def test_a_loop_whose_end_is_not_known():
    once, given = count(program(end="%n0")), count(program(end="%n0"), LoopHints(trips=5))
    assert once.unknown == {"loop"}
    assert not given.unknown
    assert given.flops == 5 * once.flops == 5 * 2 * 8 * 8 * 4


def test_the_compilers_own_note_goes_first():
    noted = program(end="%n0").replace(
        "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}'
    )
    module = parse(noted)
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
        ("{}", 8),
    ],
)
def test_groups_of_devices(groups, n):
    assert count(program(groups=groups)).sent_bytes == 14 * 2 * (n - 1) / n * 8 * 8 * 4


COLLECTIVE = """HloModule jit_f, num_partitions=4

%starts (p: bf16[2,8]) -> (bf16[2,8], bf16[8,8]) {
  %p = bf16[2,8]{1,0} parameter(0)
  %gather.1 = bf16[8,8]{1,0} all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %call = (bf16[2,8]{1,0}, bf16[8,8]{1,0}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%beside (q: bf16[2,8], r: bf16[8,8], s: bf16[4,8]) -> (f32[4,4], bf16[8,8]) {
  %q = bf16[2,8]{1,0} parameter(0)
  %r = bf16[8,8]{1,0} parameter(1)
  %s = bf16[4,8]{1,0} parameter(2)
  %gather.2 = bf16[8,8]{1,0} all-gather(%q), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
  %product = f32[4,4]{1,0} convolution(%s, %s), dim_labels=bf_oi->bf
  ROOT %both = (f32[4,4]{1,0}, bf16[8,8]{1,0}) tuple(%product, %r)
}

ENTRY %main (a: bf16[2,8], b: bf16[4,8]) -> f32[4,4] {
  %a = bf16[2,8]{1,0} parameter(0)
  %b = bf16[4,8]{1,0} parameter(1)
  %start = (bf16[2,8]{1,0}, bf16[8,8]{1,0:T(8,128)S(1)}) fusion(%a), kind=kCustom, calls=%starts
  %part = bf16[2,8]{1,0} get-tuple-element(%start), index=0
  %whole = bf16[8,8]{1,0:T(8,128)S(1)} get-tuple-element(%start), index=1
  %mid = (f32[4,4]{1,0}, bf16[8,8]{1,0:T(8,128)S(1)}) fusion(%part, %whole, %b), kind=kCustom, calls=%beside
  ROOT %done = f32[4,4]{1,0} get-tuple-element(%mid), index=0
}
"""


def test_an_asynchronous_collective_counts_once():
    """It stands in the fusion that starts it and in each that it runs beside; its products are the
    fusion's own.
    """
    cost = count(COLLECTIVE)
    assert cost.sent_bytes == 3 * 2 * 8 * 2
    assert cost.products == {1: 2 * 4 * 4 * 8}


def test_batches_of_products_as_a_convolution():
    """Attention's scores on a TPU: 16 x 4 products of 128 x 128 by 128, most of whose window is
    padding.
    """
    text = """HloModule jit_f

ENTRY %main (a: f32[16,4,128,128], b: f32[16,4,128,128]) -> f32[16,4,128,128] {
  %a = f32[16,4,128,128]{3,2,1,0} parameter(0)
  %b = f32[16,4,128,128]{3,2,1,0} parameter(1)
  ROOT %c = f32[16,4,128,128]{3,2,1,0} convolution(%a, %b), window={size=16x4 stride=15x3 lhs_dilate=16x4}, dim_labels=01bf_01oi->01bf, operand_precision={highest,highest}
}
"""  # noqa: E501
    assert count(text).products == {6: 16 * 4 * 2 * 128 * 128 * 128}


def test_branches_are_taken_in_shares():
    text = """HloModule jit_f

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
  ROOT %c = f32[4,4]{1,0} conditional(%i, %a, %a), branch_computations={%usual, %rare}
}
"""
    assert count(text).flops == 2 * 4**3
    assert count(text, LoopHints(share=0.25)).flops == 2 * 4**3 / 4


def test_another_form_of_text_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        count("module { func.func }")
