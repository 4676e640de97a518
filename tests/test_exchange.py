"Hostile pickles, broken lists, and the way there and back for any features."
import builtins, functools, io, operator, os, pickle, subprocess, sys, zipfile

import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st

from mser.core import InputError
from mser.encoders.base import Encoded, EncoderCard
from mser.exchange import LABEL_ORDERS, MODALITIES, Features, export_lists, import_lists, label_order, read_list
from mser.formats import export_arrays, export_dataset, import_export
from mser.manifest import make_manifest
from mser.store import write_store
from mser.unpickle import load_pickle

few = settings(max_examples=25, deadline=None, derandomize=True)
ORDER = LABEL_ORDERS["iemocap-4"]


def published(n=4, text=5, audio=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, 7, text, generator=generator)  # text vectors are views of a larger array, as in the published lists
    return [{"text_embed": rows[i, 0], "audio_embed": torch.randn(audio, generator=generator), "label": torch.tensor(i % 4)} for i in range(n)]


# Hostile pickles

class Calls:
    "Pickled as a call."
    def __init__(self, function, *arguments): self.function, self.arguments = function, arguments
    def __reduce__(self): return self.function, self.arguments


class Subclass(np.ndarray): pass


COMMAND = "touch it-ran"
CALLS = {
    "system": (os.system, COMMAND), "eval": (eval, f"__import__('os').system('{COMMAND}')"), "exec": (exec, f"import os; os.system('{COMMAND}')"),
    "getattr": (getattr, Calls(__import__, "os"), "system"), "__import__": (__import__, "os"), "Popen": (subprocess.Popen, COMMAND, -1, None, None, None, None),
    "open": (builtins.open, "it-ran", "w"), "partial": (functools.partial, os.system, COMMAND), "attrgetter": (operator.attrgetter, "system"),
    "load": (torch.load, "it-ran"), "loads": (pickle.loads, b"."), "fromfile": (np.fromfile, "it-ran"), "map": (map, os.system, [COMMAND]),
}


def refusal(path, program: bytes) -> str:
    "What the user reads when the pickle is refused."
    path.write_bytes(program)
    with pytest.raises(InputError) as error: load_pickle(path)
    said = str(error.value)
    assert said.startswith(f"{path}: ") and "\n" not in said
    return said


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_refused_by_name(tmp_path, monkeypatch, name, protocol):
    monkeypatch.chdir(tmp_path)
    hostile = Calls(*CALLS[name])
    for value in (hostile, [{**published(1)[0], "label": hostile}], {"a": (1, [hostile])}):
        said = refusal(tmp_path/"list.pkl", pickle.dumps(value, protocol))
        assert "refused: this pickle calls " in said and "Nothing of it was run" in said
        called = {"partial": "functools.partial", "getattr": "getattr", "map": "map"}.get(name, name)  # what the pickle names first
        assert f"{called}, which has no place" in said or "system, which has no place" in said or "__import__, which" in said
    assert [p.name for p in tmp_path.iterdir()] == ["list.pkl"]


def torch_bytes(value, new: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


@pytest.mark.parametrize("new", [True, False])
def test_a_call_inside_a_file_of_torch_is_refused_by_name(tmp_path, monkeypatch, new):
    monkeypatch.chdir(tmp_path)
    said = refusal(tmp_path/"list.pt", torch_bytes([{**published(1)[0], "extra": Calls(os.system, COMMAND)}], new))
    assert f"{os.system.__module__}.system" in said
    inner = torch_bytes(Calls(eval, "1"), False)
    assert "builtin" in (said := refusal(tmp_path/"list.pkl", pickle.dumps(Calls(torch.storage._load_from_bytes, inner)))) and "eval" in said
    twice = torch_bytes(Calls(torch.storage._load_from_bytes, torch_bytes(torch.ones(1).untyped_storage(), False)), False)
    assert "_load_from_bytes" in refusal(tmp_path/"list.pkl", pickle.dumps(Calls(torch.storage._load_from_bytes, twice)))
    assert not (tmp_path/"it-ran").exists()


def word(text): return b"\x8c" + bytes([len(text)]) + text.encode()


OPCODES = {  # programs that no pickler writes
    "INST": b"(S'touch it-ran'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'touch it-ran'\no.",
    "NEWOBJ of a function": b"\x80\x02cos\nsystem\nU\x0ctouch it-ran\x85\x81.",
    "NEWOBJ of an allowed name": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "NEWOBJ_EX": b"\x80\x04" + word("os") + word("system") + b"\x93)}\x92.",
    "names from memory": b"\x80\x04" + word("system") + b"\x940" + word("os") + b"h\x00\x93" + word("touch it-ran") + b"\x85R.",
    "dots": b"\x80\x04" + word("torch.storage") + word("io.open") + b"\x93" + word("it-ran") + b"\x85R.",
    "dots into a class": b"\x80\x04" + word("numpy") + word("ndarray.__class__.__subclasses__") + b"\x93)R.",
    "a module for a name": b"\x80\x04" + word("") + word("os") + b"\x93)R.",
    "EXT": b"\x80\x02\x82\x05)R.",
    "BUILD on an allowed name": b"\x80\x04" + word("numpy") + word("dtype") + b"\x93}" + word("make") + word("x") + b"sb.",
    "BUILD with slots": b"\x80\x04" + word("collections") + word("OrderedDict") + b"\x93N}" + word("__class__") + word("x") + b"s\x86b.",
    "BUILD on its result": b"\x80\x04" + word("collections") + word("OrderedDict") + b"\x93)R}" + word("__class__") + word("x") + b"sb.",
    "a result that is called": b"\x80\x04" + word("collections") + word("OrderedDict") + b"\x93)R)R.",
    "a text that is called": b"\x80\x04" + word("os.system") + word("touch it-ran") + b"\x85R.",
    "a persistent id": b"\x80\x04" + word("storage") + b"\x85Q.",
    "PERSID": b"Pstorage\n.",
    "a codec": b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.",
    "bytes of any size": b"\x80\x04" + word("builtins") + word("bytes") + b"\x93J\xff\xff\xff\x7f\x85R.",
    "too many places": b"\x80\x04Nr\xff\xff\xff\xff.",
    "a frame too long": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x00N.",
    "bytes too long": b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00N.",
    "deep": b"]"*100_000 + b"a"*99_999 + b".",
    "a subclass": pickle.dumps(np.ones(2).view(Subclass)),
    "objects": pickle.dumps(np.array([{}], dtype=object)),
    "records": pickle.dumps(np.zeros(2, [("a", "f4"), ("b", "O")])),
    "empty": b"",
    "text": b"id,label\n1,anger\n",
}


@pytest.mark.parametrize("program", OPCODES.values(), ids=OPCODES)
def test_programs_that_no_pickler_writes(tmp_path, monkeypatch, program):
    monkeypatch.chdir(tmp_path)
    path = tmp_path/"list.pkl"
    path.write_bytes(program)
    with pytest.raises(InputError) as error: read_list(path, {}, ORDER)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["list.pkl"]


def tensor_program(offset, size, stride):
    "A tensor that looks anywhere, in a pickle like the published ones."
    _, (inner,) = torch.zeros(4)._typed_storage().__reduce__()
    window = Calls(torch._utils._rebuild_tensor_v2, Calls(torch.storage._load_from_bytes, inner), offset, size, stride, False, {})
    return pickle.dumps([{"text_embed": window, "audio_embed": [1.0], "label": 0}])


@pytest.mark.parametrize("offset, size, stride", [(0, (5,), (1,)), (4, (1,), (1,)), (-1, (1,), (1,)), (0, (2, 2), (4, 1)), (0, (10**12,), (0,)),
                                                  (0, (4,), (-1,))])
def test_a_window_outside_its_storage_is_refused(tmp_path, offset, size, stride):
    (tmp_path/"list.pkl").write_bytes(tensor_program(offset, size, stride))
    with pytest.raises(InputError, match="item 0: text_embed is no array"): read_list(tmp_path/"list.pkl", {}, ORDER)


def test_a_compressed_storage_is_refused(tmp_path):
    "A megabyte that unpacks to a gigabyte."
    with zipfile.ZipFile(io.BytesIO(torch_bytes(torch.zeros(10), True))) as old, zipfile.ZipFile(tmp_path/"bomb.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist(): new.writestr(name, old.read(name))
    with pytest.raises(InputError, match="a compressed member"): load_pickle(tmp_path/"bomb.pt")


@pytest.mark.parametrize("compressed", ["data.pkl", "byteorder", "data/0"])
def test_any_compressed_member_of_a_file_of_torch_is_refused(tmp_path, compressed):
    with zipfile.ZipFile(io.BytesIO(torch_bytes(torch.zeros(10), True))) as old, zipfile.ZipFile(tmp_path/"bomb.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED if name.endswith(compressed) else zipfile.ZIP_STORED)
        assert [m.compress_type for m in new.infolist()].count(zipfile.ZIP_DEFLATED) == 1
    with pytest.raises(InputError, match="a compressed member"): load_pickle(tmp_path/"bomb.pt")


REFUSE = """
import resource, sys
from mser.core import InputError
from mser.exchange import read_list
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try: read_list(__import__("pathlib").Path(sys.argv[1]), {}, ("anger",))
except InputError as e: print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)//1024, e)
"""


def refused_elsewhere(path, program: bytes) -> tuple[int, str]:
    "What another process says of a list, and how many MB more it took for that; it may crash without harm to this one."
    path.write_bytes(program)
    done = subprocess.run([sys.executable, "-c", REFUSE, path], capture_output=True, text=True)
    assert not done.returncode, f"exit status {done.returncode}: {done.stderr[-300:]}"
    megabytes, said = done.stdout.split(maxsplit=1)
    return int(megabytes), said


@pytest.mark.parametrize("program", [b"\x80\x02}" + b")" + b"\x85"*2_000_000 + b"Ns.",  # {((((...),),),): None}
                                     b"(" + b"("*300_000 + b"t"*300_000 + b"Nd.",
                                     b"\x80\x02})q\x00" + b"".join(b"0h%cN\x86q%c" % (i % 2, 1 - i % 2) for i in range(200_000)) + b"Ns."],
                         ids=["TUPLE1", "TUPLE", "by places"])
def test_a_key_so_deep_that_its_hash_overruns_the_stack_is_refused(tmp_path, program):
    _, said = refused_elsewhere(tmp_path/"list.pkl", program)
    assert "more than 1,000 deep" in said and said.startswith(f"{tmp_path/'list.pkl'}: ")


def test_a_number_in_place_of_bytes_makes_no_bytes(tmp_path):
    call = b"\x80\x04" + word("numpy._core.numeric") + word("_frombuffer") + b"\x93(J" + (2_000_000_000).to_bytes(4, "little")
    megabytes, said = refused_elsewhere(tmp_path/"list.pkl", b"\x80\x04]" + call[2:] + word("i1") + b"N" + word("C") + b"tR" + b"a.")
    assert "2000000000 in place of bytes" in said and megabytes < 300


def test_an_item_that_is_named_again_and_again_fills_no_memory(tmp_path):
    "A megabyte that unpacks to three gigabytes."
    item = pickle.dumps({"text_embed": np.ones((2**10, 2**10), np.int8), "audio_embed": np.ones(3), "label": 0}, 2)[2:-1]
    megabytes, said = refused_elsewhere(tmp_path/"list.pkl", b"\x80\x02](" + item + b"r\xf0\x00\x00\x00" + b"h\xf0"*800 + b"e.")
    assert ": item 18: the embeddings up to here are more than 8 times as large as the file" in said and megabytes < 500


def endless():
    value = []
    value.append(value)
    return value


def nested(levels):
    value = ()
    for _ in range(levels): value = (value,)
    return value


@pytest.mark.parametrize("item", [{"label": value} for value in ("x"*10**6, 10**5000, 10**100, "\n\ud800", endless(), nested(200), [[]]*10**5, {1: 2}, b"x"*10**6)] + [
    {"text_embed": value} for value in ("x"*10**5, 10**5000, [10**5000], [10**400, 1.0], endless(), nested(200), b"x"*10**6)] + [
    {"drop": "audio_embed", value: 1} for value in ("x"*10**6, 10**5000, nested(200))])
def test_what_a_message_quotes_is_short(tmp_path, item):
    items = published(2)
    items[1] |= item
    items[1].pop(item.get("drop"), None)
    (tmp_path/"list.pkl").write_bytes(pickle.dumps(items))
    with pytest.raises(InputError, match="list.pkl: item 1: ") as error: read_list(tmp_path/"list.pkl", {}, ORDER)
    assert len(str(error.value)) < 1000 and "\n" not in str(error.value)
    listed, skipped = read_list(tmp_path/"list.pkl", {}, ORDER, skip_bad=True)
    assert len(listed) == len(skipped) == 1


AUDIT = """
import sys
from pathlib import Path
from mser.unpickle import load_pickle
from mser.core import InputError
import zipfile, pickletools, numpy as np
"".encode("raw_unicode_escape")  # protocol 0 writes texts so; Python imports the codec when it is first used
events = []
watched = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "exec", "compile", "import", "shutil", "socket", "pickle.find_class", "ctypes")
programs = sorted(Path(sys.argv[1]).iterdir())
def hook(event, arguments):
    if event.startswith(watched) or event == "open" and arguments[1] and set(arguments[1]) & set("wax+"): events.append((event, arguments[0]))
sys.addaudithook(hook)
for path in programs:
    try: load_pickle(path)
    except InputError: pass
print(len(programs), events)
"""


def test_the_interpreter_itself_saw_nothing_run(tmp_path):
    "Python reports each call of the system, each import, each compilation, each file opened for writing: there are none."
    programs = [pickle.dumps(Calls(*call), p) for call in CALLS.values() for p in range(6)] + list(OPCODES.values())
    programs += [torch_bytes(Calls(*call), new) for call in CALLS.values() for new in (True, False)] + [pickle.dumps(published())]
    for i, program in enumerate(programs): (tmp_path/f"{i:03}.pkl").write_bytes(program)
    done = subprocess.run([sys.executable, "-c", AUDIT, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{len(programs)} []"


LIST, NEW, OLD, ARRAYS = (pickle.dumps(published(2)), torch_bytes(published(2), True), torch_bytes(published(2), False),
                          pickle.dumps([{k: v.numpy() for k, v in item.items()} for item in published(2)]))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from([LIST, NEW, OLD, ARRAYS]), st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=5),
       st.floats(0, 1))
def test_a_damaged_list_is_refused_or_read_and_nothing_else(tmp_path_factory, program, changes, keep):
    data = bytearray(program)
    for where, value in changes: data[int(where*len(data))] = value
    path = tmp_path_factory.mktemp("fuzz")/"list.pkl"
    path.write_bytes(data if keep > 0.2 else data[:int(5*keep*len(data))])
    try: items, _ = read_list(path, {}, ORDER)
    except InputError as e: assert str(e).startswith(f"{path}: ")
    else: assert all(np.isfinite(item.text.frames).all() for item in items)


@few
@given(st.binary(max_size=200))
def test_any_bytes(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz")/"list.pkl"
    path.write_bytes(data)
    with pytest.raises(InputError): read_list(path, {}, ORDER)


# What is in a list

@pytest.mark.parametrize("write", [*(functools.partial(pickle.dumps, protocol=p) for p in range(6)), functools.partial(torch_bytes, new=True),
                                   functools.partial(torch_bytes, new=False)], ids=[*(f"protocol {p}" for p in range(6)), "torch.save", "older torch.save"])
@pytest.mark.parametrize("form", ["torch", "half", "bfloat16", "numpy", "numbers"])
def test_every_way_to_write_a_list(tmp_path, write, form):
    items = published()
    convert = {"torch": lambda t: t, "half": lambda t: t.half() if t.ndim else t, "bfloat16": lambda t: t.bfloat16() if t.ndim else t,
               "numpy": lambda t: t.numpy(), "numbers": lambda t: t.tolist()}[form]
    (tmp_path/"train.pkl").write_bytes(write([{name: convert(t) for name, t in item.items()} for item in items]))
    listed, skipped = read_list(tmp_path/"train.pkl", {}, ORDER)
    assert not skipped and [item.row["label"] for item in listed] == [ORDER[i % 4] for i in range(4)]
    for item, original in zip(listed, items):
        for modality in MODALITIES:
            expected = torch.as_tensor(convert(original[f"{modality}_embed"])).float().numpy()
            np.testing.assert_array_equal(getattr(item, modality).utterance, expected)
            np.testing.assert_array_equal(getattr(item, modality).frames, expected[None])


def test_labels_mean_the_same_in_and_out(tmp_path):
    items = [item | {"label": word} for item, word in zip(published(), ("joy", "HAP", "Happy", "ang"))]
    (tmp_path/"words.pkl").write_bytes(pickle.dumps(items))
    features = import_lists([("test", tmp_path/"words.pkl")], tmp_path/"in", "meld")
    assert features.manifest.table.label.tolist() == ["happiness"]*3 + ["anger"]
    own = features._replace(manifest=make_manifest(features.manifest.table.replace({"label": {"happiness": "joy"}})))  # a table of one's own
    path, = export_lists(own, tmp_path/"out", label_order("anger,joy"))
    assert [int(item["label"]) for item in pickle.loads(path.read_bytes())] == [1, 1, 1, 0]


@pytest.mark.parametrize("speakers, sentence", [
    (["unknown"]*4, "Speakers are not recorded."), (["a", "unknown", "b", "a"], "Speakers: a, b; not recorded for 1 utterances. A split"), (list("baab"), "Speakers: a, b. A split")])
def test_the_card_of_a_dataset_says_who_speaks(tmp_path, speakers, sentence):
    (tmp_path/"list.pkl").write_bytes(pickle.dumps(published()))
    features = import_lists([("test", tmp_path/"list.pkl")], tmp_path/"in", "meld", ORDER)
    manifest = make_manifest(features.manifest.table.assign(speaker=speakers))
    export_dataset(features._replace(manifest=manifest), tmp_path/"out")
    assert sentence in (tmp_path/"out"/"README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("change, message", [
    ({"text_embed": torch.tensor([1, torch.nan, 1, 1, 1])}, r"item 2: text_embed has 1 numbers that are not finite"),
    ({"audio_embed": torch.full((3,), torch.inf)}, r"item 2: audio_embed has 3 numbers that are not finite"),
    ({"audio_embed": torch.zeros(3)}, r"item 2: audio_embed is all zeros, the mark of a failed extraction"),
    ({"text_embed": torch.ones(6)}, r"item 2: text_embed has 6 numbers, those before it 5"),
    ({"text_embed": None}, r"item 2: text_embed is object \[\]"),
    ({"label": torch.tensor(4)}, r"item 2: label 4 is none of the 4 classes anger, happiness, sadness, neutral"),
    ({"label": "Angrily"}, r"item 2: unknown label 'Angrily'"),
    ({"label": 1.0}, r"item 2: label 1.0 is neither a name nor a whole number"),
])
def test_a_bad_item_is_named_or_listed(tmp_path, change, message):
    items = published()
    items[2] |= change
    (tmp_path/"train.pkl").write_bytes(pickle.dumps(items))
    with pytest.raises(InputError, match=f"train.pkl: {message}"): import_lists([("train", tmp_path/"train.pkl")], tmp_path/"out", "c", ORDER)
    assert not (tmp_path/"out").exists()
    features = import_lists([("train", tmp_path/"train.pkl")], tmp_path/"out", "c", ORDER, skip_bad=True)
    assert features.manifest.ids == ["train-000000", "train-000001", "train-000003"] == features.text.ids == features.audio.ids
    assert [s.item for s in features.manifest.skipped] == [s.item for s in features.audio.skipped] == ["train-000002"]


def test_numbers_without_an_order_are_refused_and_names_are_not(tmp_path):
    (tmp_path/"numbers.pkl").write_bytes(pickle.dumps(published()))
    with pytest.raises(InputError, match="label 0 is a number.*--label-order"): import_lists([(None, tmp_path/"numbers.pkl")], tmp_path/"out", "c")
    (tmp_path/"names.pkl").write_bytes(pickle.dumps([item | {"label": name} for item, name in zip(published(), ("ang", "HAP", "sadness", "neu"))]))
    features = import_lists([(None, tmp_path/"names.pkl")], tmp_path/"out", "c")
    assert features.manifest.table.label.tolist() == list(ORDER) and set(features.manifest.table.speaker) == {"unknown"}


# There and back

vectors = st.floats(-1e3, 1e3, width=32)
labels = st.sampled_from(["anger", "happiness", "sadness", "neutral"])
parts = st.sampled_from([None, "train", "val", "test"])


@few
@given(st.lists(st.tuples(st.lists(vectors, min_size=3, max_size=3).filter(any), st.lists(vectors, min_size=2, max_size=2).filter(any), labels, parts),
                min_size=1, max_size=12))
def test_lists_there_and_back(tmp_path_factory, rows):
    "x is what an import gives; import(export(x)) is x, to the last bit and the last id."
    work = tmp_path_factory.mktemp("lists")
    lists = {}
    for text, audio, label, part in rows:
        item = {"text_embed": torch.tensor(text), "audio_embed": torch.tensor(audio), "label": torch.tensor(ORDER.index(label))}
        lists.setdefault(part, []).append(item)
    files = [(part, work/(f"c_{part}.pkl" if part else "c.pkl")) for part in lists]
    for part, path in files: path.write_bytes(pickle.dumps(lists[part]))
    x = import_lists(files, work/"x", "c", ORDER)
    written = {p.name: p for p in export_lists(x, work/"lists", ORDER)}
    assert set(written) == {path.name for _, path in files}
    back = import_lists([(part, written[path.name]) for part, path in files], work/"back", "c", ORDER)
    pd.testing.assert_frame_equal(back.manifest.table, x.manifest.table)
    for one, two in zip(x[1:], back[1:]):
        np.testing.assert_array_equal(one.pooled(x.manifest.ids), two.pooled(x.manifest.ids))
        assert one.card == two.card
    for part, path in files:  # the same lists as those that were published
        for old, new in zip(pickle.loads(path.read_bytes()), pickle.loads(written[path.name].read_bytes()), strict=True):
            assert all(torch.equal(old[name], new[name]) and old[name].dtype == new[name].dtype for name in old) and set(old) == set(new)


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
utterances = st.fixed_dictionaries({
    "id": words, "corpus": words, "text": st.just("") | words, "label": st.sampled_from(["anger", "joy", "calm", "other"]), "speaker": words, "gender": st.sampled_from([None, "female", "male"]), "split": parts, "valence": st.none() | st.floats(-1, 1),
    "sample_rate": st.none() | st.integers(1, 10**6), "session": st.none() | words, "note": st.none() | words, "take": st.integers(-5, 5),
    "n": st.integers(1, 5), "marks": st.tuples(*[st.booleans()]*2)})


@few
@given(st.lists(utterances, min_size=1, max_size=8, unique_by=lambda row: row["id"]), st.sampled_from([export_arrays, export_dataset]), st.booleans(),
       st.integers(0, 10))
def test_formats_there_and_back(tmp_path_factory, rows, export, frames, seed):
    work, rng = tmp_path_factory.mktemp("formats"), np.random.default_rng(seed)
    table = pd.DataFrame(rows).drop(columns=["n", "marks"])
    stores = {}
    for modality, dim in zip(MODALITIES, (3, 4)):
        card = EncoderCard(name=f"toy {modality}", modality=modality, frame_dim=dim, utterance_dim=2, hop_seconds=0.02, pretraining="none", licence="MIT",
                           contamination=("meld",))
        items = [(row["id"], Encoded(rng.standard_normal((row["n"], dim)).astype(np.float32), rng.standard_normal(2).astype(np.float32), *row["marks"]))
                 for row in rows]
        stores[modality] = write_store(work/modality, card, items, "s", shard_size=3)
    x = Features(make_manifest(table), **stores)
    back = import_export(export(x, work/"x.npz", frames), work/"back")
    assert back.manifest.fingerprint == x.manifest.fingerprint
    pd.testing.assert_frame_equal(back.manifest.table.drop(columns="note"), x.manifest.table.drop(columns="note"))
    for one, two in zip(x[1:], back[1:]):
        ids = x.manifest.ids
        np.testing.assert_array_equal(one.pooled(ids), two.pooled(ids))
        np.testing.assert_array_equal(two.ragged(ids)[0], one.ragged(ids)[0] if frames else one.pooled(ids))
        marks = [s.index.set_index("id").loc[ids, ["truncated", "silent"]].to_numpy() for s in (one, two)]
        np.testing.assert_array_equal(*marks)
        assert not frames or one.card == two.card


def test_datasets_reads_what_was_exported(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the datasets library is not installed")
    (tmp_path/"c_train.pkl").write_bytes(pickle.dumps(published()))
    x = import_lists([("train", tmp_path/"c_train.pkl")], tmp_path/"x", "c", ORDER)
    loaded = datasets.load_dataset(str(export_dataset(x, tmp_path/"set")), cache_dir=str(tmp_path/"cache"))["train"]
    assert loaded.features["label"].names == sorted(ORDER) and loaded.features["text_embed"].length == 5
    np.testing.assert_array_equal(np.array(loaded["text_embed"], np.float32), x.text.pooled(loaded["id"]))


def test_a_stopped_export_leaves_nothing(tmp_path, monkeypatch):
    import mser.formats as formats
    (tmp_path/"c_train.pkl").write_bytes(pickle.dumps(published()))
    x = import_lists([("train", tmp_path/"c_train.pkl")], tmp_path/"x", "c", ORDER)
    def full(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(formats, "dataset_card", full)  # after the numbers, before the card
    with pytest.raises(InputError, match="set: the disk is full"): export_dataset(x, tmp_path/"set")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c_train.pkl", "x"]
