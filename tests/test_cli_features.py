"The commands of features, as a user calls them."
import re, os, pickle, subprocess, sys

import numpy as np, pandas as pd, pytest, torch

import mser.cli
from mser.corpora.emodb import emodb
from mser.manifest import read_manifest, write_manifest
from mser.store import FeatureStore

LAUNCH = "import sys; from mser.cli import main; sys.argv[0] = 'mser'; main()"


def run(*arguments, cwd):
    "The command in a process of its own."
    return subprocess.run([sys.executable, "-c", LAUNCH, "features", *map(str, arguments)], capture_output=True, text=True, cwd=cwd,
                          env=os.environ | {"COLUMNS": "120", "TERM": "dumb"})


def lines(text): return [line for line in text.splitlines() if "%|" not in line and line.strip()]


def refused(code, stderr, *parts):
    "One line, exit code 2, no traceback."
    said = lines(stderr)
    assert code == 2 and len(said) == 1 and said[0].startswith("mser: "), stderr
    for part in parts: assert part in said[0], said[0]


@pytest.fixture
def here(monkeypatch, capfd):
    "The command in this process, which is faster: exit code and stderr."
    def call(*arguments, cwd):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["mser", "features", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit: mser.cli.main()
        return exit.value.code, capfd.readouterr().err
    return call


@pytest.fixture(scope="module")
def extracted(small_emodb, tmp_path_factory):
    "A corpus with both kinds of features."
    place = tmp_path_factory.mktemp("extracted")
    done = run("extract", f"emodb={small_emodb}", "--audio-encoder", "egemaps", "--text-encoder", "minilm", "--out", "data", "--dtype", "float16", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "84/84" in done.stderr and done.stdout.count("FeatureStore") == 2  # bars, and what was made
    return place


def test_extraction_is_what_the_library_makes_and_is_found_again(extracted, small_emodb):
    stores = {store.card.name: store for store in map(FeatureStore, (extracted/"data"/"features").iterdir())}
    assert set(stores) == {"egemaps", "minilm"} and all(store.dtype == "float16" and len(store) == 84 for store in stores.values())
    before = {p: p.stat().st_mtime_ns for p in (extracted/"data"/"features").rglob("*")}
    assert run("extract", f"emodb={small_emodb}", "--audio-encoder", "egemaps", "--out", "data", "--dtype", "float16", cwd=extracted).returncode == 0
    assert {p: p.stat().st_mtime_ns for p in (extracted/"data"/"features").rglob("*")} == before


def test_bad_recordings_stop_or_are_listed(copy_of_small_emodb, tmp_path):
    write_manifest(emodb(copy_of_small_emodb), copy_of_small_emodb/"wav"/"manifest.csv")
    wav = sorted((copy_of_small_emodb/"wav").glob("*.wav"))[3]
    wav.write_bytes(wav.read_bytes()[:1000])
    call = ["extract", f"mine={copy_of_small_emodb}/wav/manifest.csv", "--audio-encoder", "egemaps", "--out", "data"]
    done = run(*call, cwd=tmp_path)
    refused(done.returncode, done.stderr, wav.name, "--skip-bad")
    done = run(*call, "--skip-bad", cwd=tmp_path)
    assert done.returncode == 0 and "skipped " in done.stderr and f"{wav.name}: truncated" in done.stderr
    store, = (tmp_path/"data"/"features").iterdir()
    info = run("info", store, cwd=tmp_path)
    assert re.search("left out +1", info.stdout) and f"{wav.name}: truncated" in info.stderr


def test_info_and_verify(extracted):
    stores = sorted((extracted/"data"/"features").iterdir())
    done = run("info", *stores, cwd=extracted)
    assert done.returncode == 0
    for said in ("egemaps (audio)", "one every 10 ms", "minilm (text)", "float16", "utterances    84", "none of our corpora", "openSMILE"):
        assert said in done.stdout
    done = run("verify", *stores, cwd=extracted)
    assert done.returncode == 0 and done.stdout.count("all is well") == 2 and "file" in done.stderr


def test_a_flipped_byte_is_named_and_the_exit_code_is_1(extracted):
    store = next((extracted/"data"/"features").glob("*egemaps*"))
    shard = store/"shard-00001.safetensors"
    whole = shard.read_bytes()
    try:
        shard.write_bytes(whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:])
        done = run("verify", *sorted(store.parent.iterdir()), cwd=extracted)
    finally: shard.write_bytes(whole)
    assert done.returncode == 1 and done.stdout.count("all is well") == 1
    ids = FeatureStore(store).ids
    assert f"shard-00001.safetensors (utterances {ids[64]} to {ids[83]}) was changed after it was written" in done.stderr
    assert "delete the files named" in done.stderr


@pytest.mark.parametrize("form", ["npz", "dataset"])
def test_export_and_import_keep_everything(extracted, tmp_path, form):
    out, name = tmp_path/("x.npz" if form == "npz" else "x"), "back"
    done = run("export", extracted/"data", "--form", form, "--frames", "--out", out, cwd=tmp_path)
    assert done.returncode == 0 and "84 utterances" in done.stdout and "84/84" in done.stderr, done.stderr
    assert run("import", out, "--out", name, "--dtype", "float16", cwd=tmp_path).returncode == 0
    before, after = ({s.card.name: s for s in map(FeatureStore, (root/"features").iterdir())} for root in (extracted/"data", tmp_path/name))
    manifest, = (extracted/"data"/"manifests").iterdir()
    assert read_manifest(tmp_path/name/"manifest.parquet").fingerprint == read_manifest(manifest).fingerprint
    for encoder, store in before.items():
        np.testing.assert_array_equal(store.pooled(store.ids), after[encoder].pooled(store.ids))
        np.testing.assert_array_equal(store.ragged(store.ids)[0], after[encoder].ragged(store.ids)[0])
        assert store.card == after[encoder].card


def test_lists_go_out_and_come_in(extracted, tmp_path):
    names = "anger,boredom,disgust,fear,happiness,neutral,sadness"
    assert run("export", extracted/"data", "--form", "lists", "--label-order", names, "--out", "lists", cwd=tmp_path).returncode == 0
    items = pickle.loads((tmp_path/"lists"/"emodb.pkl").read_bytes())
    assert len(items) == 84 and items[0]["text_embed"].dtype == torch.float32 and tuple(items[0]["audio_embed"].shape) == (88,)
    beside = pd.read_csv(tmp_path/"lists"/"emodb.csv")
    assert [names.split(",")[item["label"]] for item in items] == beside.label.tolist()
    done = run("import", "test=lists/emodb.pkl", "--label-order", names, "--corpus", "emodb", "--audio-name", "egemaps", "--out", "back", cwd=tmp_path)
    assert done.returncode == 0 and "84 utterances" in done.stdout and "anger: 12" in done.stdout and "import emodb" in done.stderr
    manifest = read_manifest(tmp_path/"back"/"manifest.parquet").table
    assert manifest.label.tolist() == beside.label.tolist() and set(manifest.split) == {"test"} and set(manifest.speaker) == {"unknown"}
    store = FeatureStore(next((tmp_path/"back"/"features").glob("emodb-egemaps-*")))
    np.testing.assert_array_equal(store.pooled(store.ids), np.stack([item["audio_embed"] for item in items]))


def test_what_cannot_be_used_is_refused_in_one_line(extracted, here, tmp_path):
    items = [{"text_embed": torch.ones(4), "audio_embed": torch.ones(3), "label": torch.tensor(1)}]*2
    (tmp_path/"numbers.pkl").write_bytes(pickle.dumps(items))
    (tmp_path/"nan.pkl").write_bytes(pickle.dumps([items[0], items[0] | {"audio_embed": torch.full((3,), torch.nan)}]))
    (tmp_path/"sizes.pkl").write_bytes(pickle.dumps([items[0], items[0] | {"text_embed": torch.ones(5)}]))
    (tmp_path/"hostile.pkl").write_bytes(b"cos\nsystem\n(S'touch it-ran'\ntR.")
    (tmp_path/"taken").mkdir()
    (tmp_path/"taken"/"README.md").write_text("mine")
    out = ["--out", "out"]
    for arguments, *parts in [
        (["import", "numbers.pkl", *out], "numbers.pkl: item 0: label 1 is a number", "--label-order"),
        (["import", "nan.pkl", *out, "--label-order", "meld-4"], "nan.pkl: item 1: audio_embed has 3 numbers that are not finite"),
        (["import", "sizes.pkl", *out, "--label-order", "meld-4"], "sizes.pkl: item 1: text_embed has 5 numbers, those before it 4"),
        (["import", "hostile.pkl", *out], "hostile.pkl: refused: this pickle calls os.system"),
        (["import", "absent.pkl", *out], "absent.pkl: no such file"),
        (["import", "absent.npz", *out], "absent.npz: no such file"),
        (["import", "tset=numbers.pkl", *out], "unknown part 'tset'", "Did you mean 'test'"),
        (["import", "numbers.pkl", *out, "--label-order", "meld4"], "Did you mean 'meld-4'"),
        (["export", "taken", "--form", "npz", *out], "taken: no manifest in it", "--manifest"),
        (["export", extracted/"data", "--form", "lists", *out], "needs --label-order"),
        (["export", extracted/"data", "--form", "npz", "--label-order", "meld-4", *out], "has no --label-order"),
        (["export", extracted/"data", "--form", "lists", "--label-order", "meld-4", *out], "label 'boredom' is not in the order"),
        (["export", extracted/"data", "--form", "dataset", "--out", "taken"], "taken: there is something already"),
        (["info", "taken"], "taken: not a finished feature store"),
        (["verify", "taken"], "taken: not a finished feature store"),
        (["extract", "emodb=taken", *out], "nothing to extract"),
        (["extract", "emodb", "--audio-encoder", "egemaps", *out], "is not NAME=PATH"),
        (["extract", "emobd=taken", "--audio-encoder", "egemaps", *out], "Did you mean 'emodb'"),
        (["extract", "emodb=nowhere", "--audio-encoder", "egemaps", *out], "nowhere"),
    ]:
        refused(*here(*arguments, cwd=tmp_path), *parts)
        assert not (tmp_path/"out").exists() and not (tmp_path/"it-ran").exists(), arguments
    assert [p.name for p in (tmp_path/"taken").iterdir()] == ["README.md"]


@pytest.mark.parametrize("command", ["extract", "info", "verify", "import", "export"])
def test_help_teaches_by_example(command, tmp_path):
    done = run(command, "--help", cwd=tmp_path)
    assert done.returncode == 0 and "Example" in done.stdout and f"mser features {command} " in done.stdout


def test_help_needs_nothing_heavy():
    code = "import sys, mser.cli_features; print([m for m in ('torch', 'pandas', 'numpy', 'safetensors', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
