"Properties of the manifest that examples in its notebook cannot show."
import tempfile
from pathlib import Path

import pandas as pd, pytest
from hypothesis import given, settings, strategies as st

from mser.core import InputError
from mser.labels import VAD_ANCHORS
from mser.manifest import MANIFEST_COLUMNS, make_manifest, read_manifest, write_manifest

words = st.text(min_size=1, max_size=12)
rating = st.none() | st.floats(-1, 1)
rows = st.fixed_dictionaries({
    "id": words, "corpus": words, "text": st.text(max_size=40), "label": st.sampled_from([*VAD_ANCHORS, "other"]), "speaker": words,
    "audio": st.none() | st.sampled_from(["wav/a.wav", "ä b/c,d.mp4"]), "gender": st.sampled_from([None, "female", "male"]),
    "session": st.none() | words, "dialogue": st.none() | words, "split": st.sampled_from([None, "train", "val", "test"]),
    "valence": rating, "arousal": rating, "dominance": rating,
    "duration": st.none() | st.floats(1e-3, 1e5), "sample_rate": st.none() | st.integers(1, 10**6), "note": words})
tables = st.lists(rows, min_size=1, max_size=6, unique_by=lambda row: row["id"]).map(pd.DataFrame)
few = settings(max_examples=25, deadline=None, derandomize=True)


@few
@given(tables, st.sampled_from([".csv", ".parquet"]))
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


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
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
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path, index=False)
    with pytest.raises(InputError) as error: read_manifest(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value) and "\n" not in str(error.value)


def test_a_large_manifest_takes_seconds(tmp_path):
    n = 10_000
    table = pd.DataFrame({"id": [f"u{i:05}" for i in range(n)], "corpus": "big", "text": "a few words", "label": "anger",
                          "speaker": [str(i % 10) for i in range(n)], "duration": 1.5})
    manifest = make_manifest(table)
    write_manifest(manifest, tmp_path/"big.csv")
    assert read_manifest(tmp_path/"big.csv").fingerprint == manifest.fingerprint
    assert tuple(manifest.table.columns) == MANIFEST_COLUMNS
