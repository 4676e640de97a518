"Properties of the manifest that examples in its notebook cannot show."
import csv, io, json, tempfile
from pathlib import Path

import pandas as pd, pytest
from hypothesis import given, settings, strategies as st

from mser.core import InputError, Skipped
from mser.labels import VAD_ANCHORS
from mser.manifest import GROUPS, MANIFEST_COLUMNS, UNKNOWN_SPEAKER, make_manifest, read_manifest, skipped_file, write_manifest

FORMATS = (".csv", ".parquet", ".jsonl")
words = st.text(min_size=1, max_size=12)
texts = st.text(max_size=40) | st.sampled_from(["", "\n", 'He said "Go,\r\nnow!"', "None", "NA", "null", "1e5", "\N{WINKING FACE}", "a\x85b\u2028c", "\\n", "word "*5000])
rating = st.none() | st.floats(-1, 1)
rows = st.fixed_dictionaries({
    "id": words, "corpus": words, "text": texts, "label": st.sampled_from([*VAD_ANCHORS, "other"]), "speaker": words | st.just(UNKNOWN_SPEAKER),
    "audio": st.none() | st.sampled_from(["wav/a.wav", "ä b/c,d.mp4"]), "gender": st.sampled_from([None, "female", "male"]),
    "session": st.none() | words, "dialogue": st.none() | words, "split": st.sampled_from([None, "train", "val", "test"]),
    "valence": rating, "arousal": rating, "dominance": rating,
    "duration": st.none() | st.floats(1e-3, 1e5), "sample_rate": st.none() | st.integers(1, 10**6), "note": st.none() | words})
tables = st.lists(rows, min_size=1, max_size=6, unique_by=lambda row: row["id"]).map(pd.DataFrame)
few = settings(max_examples=40, deadline=None, derandomize=True)


@few
@given(tables, st.sampled_from(FORMATS))
def test_round_trip(table, suffix):
    manifest = make_manifest(table)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)/f"m{suffix}"
        write_manifest(manifest, path)
        back = read_manifest(path)
    assert back.fingerprint == manifest.fingerprint
    pd.testing.assert_frame_equal(back.table, manifest.table)


@few
@given(tables, st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(table, random):
    order = list(range(len(table)))
    random.shuffle(order)
    one, other = make_manifest(table), make_manifest(table.iloc[order])
    assert one.fingerprint == other.fingerprint
    assert other.ids == sorted(table["id"])


@few
@given(tables, st.data())
def test_any_change_changes_the_fingerprint(table, data):
    row = data.draw(st.sampled_from(list(table.index)))
    changed = table.copy()
    changed.loc[row, "text"] = table.loc[row, "text"] + "!"
    assert make_manifest(changed).fingerprint != make_manifest(table).fingerprint


def demo(**columns):
    return pd.DataFrame({"id": ["a", "b"], "corpus": "demo", "text": "hello", "label": "anger", "speaker": ["1", "2"], **columns})


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("table, message", [
    (demo(id="a"), "id 'a' appears more than once"),
    (demo().drop(columns="speaker"), "column 'speaker' is missing"),
    (demo().rename(columns={"label": "labels"}), "Rename column 'labels' to 'label'"),
    (demo(valence=[0.0, 2.0]), "utterance 'b': valence is 2.0"),
    (demo(label=["anger", "Anger"]), "utterance 'b': label is 'Anger'"),
    (demo(split="dev"), "utterance 'a': split is 'dev'"),
    (demo(duration=["1.5", "1:30"]), "utterance 'b': duration is '1:30'"),
])
def test_a_bad_file_is_named(tmp_path, suffix, table, message):
    path = tmp_path/f"bad{suffix}"
    if suffix == ".jsonl": table.to_json(path, orient="records", lines=True)
    else: table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path, index=False)
    with pytest.raises(InputError) as error: read_manifest(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value) and "\n" not in str(error.value)


lines = st.text(max_size=20) | st.sampled_from(["", "d\N{WINKING FACE}.wav", 'not "audio", it is\r\nsomething else', "a\x85b\u2028c", "NA"])


@few
@given(tables, st.lists(st.builds(Skipped, words, lines), max_size=4), st.sampled_from(FORMATS))
def test_what_was_skipped_is_kept_in_every_format(table, skipped, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)/f"m{suffix}"
        write_manifest(make_manifest(table, skipped=[Skipped("old", "of an earlier manifest")]), path)
        write_manifest(make_manifest(table, skipped=skipped), path)
        assert read_manifest(path).skipped == tuple(skipped)
        assert len(list(Path(folder).iterdir())) == 1 + bool(skipped and suffix != ".parquet")


def test_a_table_of_skipped_items_that_is_none_is_named(tmp_path):
    write_manifest(make_manifest(demo(), skipped=[Skipped("c", "empty")]), tmp_path/"m.csv")
    for content, problem in [(b"item\nc\n", "the columns are not item and reason"), (b"\xff", "cannot be read"), (b"item,reason\nc,d,e", "row 1 has length 3")]:
        skipped_file(tmp_path/"m.csv").write_bytes(content)
        with pytest.raises(InputError, match=problem) as error: read_manifest(tmp_path/"m.csv")
        assert str(error.value).startswith(str(skipped_file(tmp_path/"m.csv")))


def test_a_manifest_that_cannot_be_written_leaves_the_old_one_with_its_list(tmp_path):
    write_manifest(make_manifest(demo(), skipped=[Skipped("c", "empty")]), tmp_path/"m.jsonl")
    with pytest.raises(InputError): write_manifest(make_manifest(demo(wav="x")), tmp_path/"m.jsonl")
    assert read_manifest(tmp_path/"m.jsonl").skipped == (Skipped("c", "empty"),)


@few
@given(tables)
def test_groups_of_two_corpora_or_of_nobody_are_never_one(table):
    grouped = make_manifest(table).grouped
    for name in GROUPS:
        known = grouped[grouped[name].notna()]
        pairs = known[["corpus"]].assign(name=make_manifest(table).table[name][known.index]).drop_duplicates()
        assert known[name].nunique() == len(pairs)  # a name for each pair of corpus and group, and no name for two of them
    assert (grouped.speaker.isna() == (make_manifest(table).table.speaker == UNKNOWN_SPEAKER)).all()


@given(st.lists(st.tuples(st.text("a/%2F", min_size=1, max_size=4), st.text("a/%2F", min_size=1, max_size=4)), min_size=2, max_size=8, unique=True))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_slashes_in_names_confuse_no_groups(pairs):
    table = pd.DataFrame(pairs, columns=["corpus", "speaker"]).assign(id=[str(i) for i in range(len(pairs))], text="", label="anger")
    assert make_manifest(table).n_speakers == len(set(pairs)) or table.corpus.nunique() == 1


@pytest.mark.parametrize("audio", ["../a.wav", "wav/../../a.wav", "..", "a/..", "wav/../a.wav"])
def test_a_path_out_of_the_root_is_refused(tmp_path, audio):
    demo(audio=audio).to_csv(tmp_path/"m.csv", index=False)
    with pytest.raises(InputError, match=r"utterance 'a': audio is .* must not leave the root with '\.\.'"): read_manifest(tmp_path/"m.csv")


def test_parquet_keeps_types(tmp_path):
    skipped = (Skipped("c.wav", "the file is empty (0 bytes)"), Skipped("d\N{WINKING FACE}.wav", 'not "audio"'))
    manifest = make_manifest(demo(age=pd.array([31, None], dtype="Int64")), skipped=skipped)
    write_manifest(manifest, tmp_path/"m.parquet")
    back = read_manifest(tmp_path/"m.parquet")
    assert back.skipped == skipped
    pd.testing.assert_frame_equal(back.table, manifest.table)


def test_json_lines_are_one_object_a_line_in_emobox_form(tmp_path):
    manifest = make_manifest(demo(text=["a\nb\u2028c\x85d", "\N{WINKING FACE}"], audio="a.wav", duration=1.25, sample_rate=16000, age=[31, None]))
    write_manifest(manifest, tmp_path/"m.jsonl")
    lines = (tmp_path/"m.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    records = [json.loads(line) for line in lines]
    assert len(records) == 2 and "\N{WINKING FACE}" in lines[1]
    assert {"key": "a", "dataset": "demo", "wav": "a.wav", "type": "raw", "sample_rate": 16000, "num_frame": 20000, "task": "category",
            "length": 1.25, "emo": "anger", "channel": 1}.items() <= records[0].items()
    assert records[1]["age"] is None and read_manifest(tmp_path/"m.jsonl").table.age[0] == 31


@pytest.mark.parametrize("lines, problem", [
    ('{"id": "a"}\n{"id": "b"', "line 2 is not JSON"), ('"a"', "line 1 is not a JSON object"), ('\n\n{"key": "a", "id": "b"}', "line 3: there is both 'key' and 'id'"),
    ('{"key": "a", "start_time": 3.5}', "line 1: start_time is 3.5"), ('{"key": "a", "wav": "a.wav", "emo": "anger"}', "column 'corpus' is missing")])
def test_a_bad_line_is_named(tmp_path, lines, problem):
    (tmp_path/"m.jsonl").write_text(lines)
    with pytest.raises(InputError) as error: read_manifest(tmp_path/"m.jsonl")
    assert str(error.value).startswith(f"{tmp_path/'m.jsonl'}: {problem}")


def test_a_large_manifest_takes_seconds(tmp_path):
    n = 10_000
    table = pd.DataFrame({"id": [f"u{i:05}" for i in range(n)], "corpus": "big", "text": "a few words", "label": "anger",
                          "speaker": [str(i % 10) for i in range(n)], "duration": 1.5})
    manifest = make_manifest(table)
    for suffix in FORMATS:
        write_manifest(manifest, tmp_path/f"big{suffix}")
        assert read_manifest(tmp_path/f"big{suffix}").fingerprint == manifest.fingerprint
    assert tuple(manifest.table.columns) == MANIFEST_COLUMNS


HEADER = "id,corpus,text,label,speaker"


@pytest.mark.parametrize("lines, problem", [
    ([HEADER, "a,c,Go, now,anger,1", "b,c,Stop,anger,2"], "row 1 has length 6, the header 5"),
    ([HEADER, "a,c,Go, now,anger,1", "b,c,Stop, now,anger,2"], "row 1 has length 6, the header 5"),  # all alike: pandas would take the ids for an index
    ([HEADER, "a,c,Go,anger,1,"], "row 1 has length 6, the header 5"),
    ([HEADER, "a,c,Go,anger,1", "", "b,c,Stop,anger"], "row 2 has length 4, the header 5"),
    ([HEADER, "a,c,Go,anger,1", '"b,c,Stop,anger,2'], "row 2 has length 1, the header 5"),
    ([f"{HEADER},text", "a,c,Go,anger,1,Went"], "column 'text' is there more than once")])
def test_a_csv_with_uneven_rows_or_a_repeated_column_is_refused(tmp_path, lines, problem):
    (tmp_path/"m.csv").write_text("\n".join(lines))
    with pytest.raises(InputError) as error: read_manifest(tmp_path/"m.csv")
    assert str(error.value).startswith(f"{tmp_path/'m.csv'}: {problem}")


@few
@given(tables, st.data())
def test_a_field_more_or_less_in_any_row_is_refused_with_its_number(table, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)/"m.csv"
        write_manifest(make_manifest(table), path)
        rows = list(csv.reader(io.StringIO(path.read_bytes().decode(), newline="")))
        n = data.draw(st.integers(1, len(rows) - 1))
        rows[n] = data.draw(st.sampled_from([rows[n][:-1], rows[n] + ["x"], rows[n][:3] + ["x"] + rows[n][3:]]))
        with open(path, "w", newline="", encoding="utf-8") as file: csv.writer(file).writerows(rows)
        with pytest.raises(InputError, match=rf"m\.csv: row {n} has length {len(rows[n])}, the header {len(rows[0])}"): read_manifest(path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_text_of_any_length_is_read_again(tmp_path, suffix):
    "Python's reader of CSV refuses fields of more than 131,072 characters unless it is told."
    long = make_manifest(pd.DataFrame({"id": ["u1", "u2"], "corpus": "c", "text": ["a,\"b\n"*100_000, "short"], "label": "neutral", "speaker": "s"}))
    limit = csv.field_size_limit()
    write_manifest(long, tmp_path/f"m{suffix}")
    assert read_manifest(tmp_path/f"m{suffix}").table.text.tolist() == long.table.text.tolist()
    assert csv.field_size_limit() == limit
