"""Memory is taken again when no tensor lies in it, and never before."""

from modules.dataLoader.ReusedMemory import SMALLEST, UNIT, ReusedMemory

SIZE = 3 * SMALLEST + 5


def test_memory_is_used_again_when_the_last_tensor_is_gone():
    memory = ReusedMemory(1 << 30)
    first = memory.take(SIZE)
    place, part = first.data_ptr(), first[8:16].view(2, 4)
    del first
    other = memory.take(SIZE)
    assert len(other) == SIZE and other.data_ptr() != place, "a part of the first is still there"
    part.fill_(7)
    del part
    # of nearly the same size
    assert memory.take(SIZE + 100).data_ptr() == place


def test_no_more_is_held_than_agreed():
    memory = ReusedMemory(1 << 20)
    pieces = [memory.take(SIZE) for _ in range(3)]
    del pieces
    held = sum(len(one) for free in memory._free.values() for one in free)
    assert SIZE <= held <= 1 << 20


def test_pieces_of_sizes_that_nobody_asks_for_make_room():
    memory = ReusedMemory(4 * SMALLEST)
    old, kept = [memory.take(SMALLEST) for _ in range(3)], memory.take(SMALLEST + UNIT)
    del old
    del kept
    # asked for after the others
    kept = memory.take(SMALLEST + UNIT)
    place = kept.data_ptr()
    del kept
    new = memory.take(2 * SMALLEST)
    wanted = new.data_ptr()
    del new
    assert [memory.take(size).data_ptr() for size in (2 * SMALLEST, SMALLEST + UNIT)] == [wanted, place]
    assert sorted(memory._free) == [SMALLEST + UNIT, 2 * SMALLEST] and memory._free_bytes <= 4 * SMALLEST
    memory.take(5 * SMALLEST)
    assert 5 * SMALLEST not in memory._free and len(memory._free) == 2, "too large to be held, so nothing makes room"
