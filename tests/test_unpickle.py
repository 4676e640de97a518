"Programs of a hundred bytes that would keep a machine busy for years, and honest ones that look like them."
import pickle, subprocess, sys, zipfile
from collections import OrderedDict

import pytest
from hypothesis import given, settings, strategies as st

from mser.core import InputError
from mser.unpickle import load_pickle

few = settings(max_examples=60, deadline=None, derandomize=True)
TWICE = b")" + b"2\x86"*60  # (t, t) of a t that is (t, t) of another, sixty times: hashed, printed or compared it takes longer than anyone waits
ALMOST = b")" + b"2\x86"*8  # 511 items: small enough to be a key


def word(text: str) -> bytes: return b"\x8c" + bytes([len(text)]) + text.encode()


def name(module: str, name: str) -> bytes: return word(module) + word(name) + b"\x93"


STORAGE = word("storage") + name("torch", "FloatStorage")
PROGRAMS = {
    "SETITEM": b"}" + TWICE + b"Ns.",
    "SETITEMS": b"}(NN" + TWICE + b"Nu.",
    "DICT": b"(NN" + TWICE + b"Nd.",
    "a set": b"\x8f(" + TWICE + b"\x90.",
    "a frozen set": b"(" + TWICE + b"\x91.",
    "tuples of frozen sets": b"}(N\x91" + b"2\x86"*60 + b"Ns.",
    "by a place": b"}" + TWICE + b"\x94" + b"0h\x00Ns.",
    "by a call": b"}" + name("torch._utils", "_rebuild_parameter") + b"(" + TWICE + b"\x89NtRNs.",
    "pairs": name("collections", "OrderedDict") + b"](" + TWICE + b"N\x86e\x85R.",
    "a place's value": b"}N" + TWICE + b"s.",
    "a storage's name": b"(" + STORAGE + TWICE + word("cpu") + b"K\x01tQ.",
    "a byte order": name("numpy", "dtype") + b"(" + word("f4") + b"\x89\x88tR(K\x03" + TWICE + b"NNNtb.",
}
LOAD = """
import resource, sys
from mser.core import InputError
from mser.unpickle import load_pickle
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
try: print("read", type(load_pickle(sys.argv[1])))
except InputError as e: print(e)
"""


def loaded_elsewhere(path) -> str:
    "What another process, with twenty seconds to spend, says of a file."
    done = subprocess.run([sys.executable, "-c", LOAD, path], capture_output=True, text=True)
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr[-300:]}"
    return done.stdout


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_value_that_unfolds_is_refused(tmp_path, program):
    (tmp_path/"list.pkl").write_bytes(b"\x80\x04" + program)
    assert "list.pkl: not a pickle of tensors or arrays, or damaged" in loaded_elsewhere(tmp_path/"list.pkl")


@pytest.mark.parametrize("program, message", [
    (PROGRAMS["pairs"], "a name that is no text"), (PROGRAMS["by a call"], "a parameter of a tuple"), (PROGRAMS["a storage's name"], "a storage that is named by a tuple")])
def test_what_need_not_be_a_tuple_is_none(tmp_path, program, message):
    "Whatever its size: a storage's name, for one, would be printed to find its member."
    with zipfile.ZipFile(tmp_path/"list.pt", "w") as archive: archive.writestr("list/data.pkl", b"\x80\x04" + program.replace(TWICE, ALMOST))
    with pytest.raises(InputError, match=message): load_pickle(tmp_path/"list.pt")


def test_many_keys_that_are_small_enough_take_no_longer_than_the_file_is_long(tmp_path):
    (tmp_path/"list.pkl").write_bytes(b"\x80\x04}" + ALMOST + b"\x94" + b"0" + b"h\x00Ns"*100_000 + b".")
    assert "read <class 'dict'>" in loaded_elsewhere(tmp_path/"list.pkl")


def test_a_long_number_is_no_key(tmp_path):
    (tmp_path/"list.pkl").write_bytes(pickle.dumps({1 << 8_000_000: 1}, 4))
    with pytest.raises(InputError, match="a key that unfolds to 125,001 items"): load_pickle(tmp_path/"list.pkl")
    (tmp_path/"list.pkl").write_bytes(pickle.dumps([1 << 8_000_000], 4))
    assert load_pickle(tmp_path/"list.pkl") == [1 << 8_000_000]


@pytest.mark.parametrize("n", [b"J\xff\xff\xff\xff", b"G\x40\x00\x00\x00\x00\x00\x00\x00", b"N", b"\x88", word("1"), b")"], ids=["-1", "2.0", "None", "True", "text", "tuple"])
def test_a_storage_has_a_number_of_numbers(tmp_path, n):
    program = b"\x80\x04(" + STORAGE + word("0") + word("cpu") + n + b"tQ."
    with zipfile.ZipFile(tmp_path/"list.pt", "w") as archive:
        archive.writestr("list/data.pkl", program)
        archive.writestr("list/data/0", b"")
    with pytest.raises(InputError, match="a storage of .* numbers"): load_pickle(tmp_path/"list.pt")


keys = st.recursive(st.one_of(st.integers(-2**70, 2**70), st.text(max_size=5), st.booleans(), st.none()), lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=20)
values = st.recursive(keys, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4), st.tuples(inner, inner)), max_leaves=30)


@few
@given(values, st.integers(0, 5), st.booleans())
def test_honest_values_are_read(tmp_path_factory, value, protocol, thrice):
    "Also when they name a part again."
    path = tmp_path_factory.getbasetemp()/"value.pkl"
    value = [value, (value, value), {"again": value}] if thrice else value
    path.write_bytes(pickle.dumps(value, protocol))
    assert load_pickle(path) == value


def test_an_ordered_dictionary_is_read(tmp_path):
    (tmp_path/"three.pkl").write_bytes(pickle.dumps(OrderedDict(a=1, b=[2]), 2))
    (tmp_path/"two.pkl").write_bytes(b"ccollections\nOrderedDict\n((l(S'a'\nI1\nla(S'b'\n(lI2\nalatR.")  # as Python 2 does
    assert load_pickle(tmp_path/"three.pkl") == load_pickle(tmp_path/"two.pkl") == {"a": 1, "b": [2]}
