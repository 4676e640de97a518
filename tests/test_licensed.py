"""The whole reproduction from folders to report, on small trees in the layouts of the licensed corpora, with tiny encoders saved here: no network."""
import os, subprocess, sys
from pathlib import Path

import pandas as pd
import pytest

from mser.core import read_json
from test_cremad import write_tables
from test_encoders import save_speech, save_text
from test_iemocap import write_dialogue
from test_meld import row, write_mp4, write_split
from conftest import tone

CODES = ["neu", "ang", "hap", "sad"]


def iemocap_tree(root):
    "Five sessions of two dialogues, with the four commonest emotions."
    tone(root/"tone.wav", 3)
    for k in range(1, 6):
        for kind in ("impro01", "script01_1"): write_dialogue(root, f"Ses0{k}F_{kind}", CODES*2, root/"tone.wav")


def cremad_tree(root):
    "Ten actors who say two sentences in six emotions."
    names = [f"{actor}_{s}_{e}_XX" for actor in range(1001, 1011) for s in ("TIE", "MTI") for e in ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")]
    for i, name in enumerate(names): tone(root/"AudioWAV"/f"{name}.wav", i)
    write_tables(root, names)
    table = root/"processedResults"/"summaryTable.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *(line.replace(',"N","', f',"{name[9]}","') for line, name in zip(lines[1:], names))]))


def meld_tree(root, clips):
    "Three official parts with clips in mp4."
    emotions = ["neutral", "joy", "anger", "sadness", "surprise", "fear", "disgust"]
    for name in ("train", "dev", "test"): write_split(root, name, [row(0, u, e) for u, e in enumerate(emotions*2)], clips)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    "The folders of three corpora and two encoders."
    root = tmp_path_factory.mktemp("licensed")
    for name in ("iemocap", "cremad", "meld", "clips", "text", "audio"): (root/name).mkdir()
    write_mp4(root/"clips"/"plain.mp4", 1.0)
    iemocap_tree(root/"iemocap"); cremad_tree(root/"cremad"); meld_tree(root/"meld", root/"clips")
    save_text(root/"text", "bert", 128); save_speech(root/"audio", "wav2vec2", "layer")
    return root


@pytest.mark.parametrize("names, only, titles", [(("iemocap", "cremad"), "finetune", ("IEMOCAP", "CREMA-D")), (("meld",), "combined", ("MELD",))], ids=["finetune", "meld"])
def test_from_folders_to_a_report_without_a_network(given, tmp_path, names, only, titles):
    corpora = [argument for name in names for argument in ("--corpus", f"{name}={given/name}")]
    command = [Path(sys.executable).parent/"mser", "reproduce", *corpora, "--profile", "smoke", "--only", only, "--out", tmp_path/"out",
               "--text-encoder", given/"text", "--audio-encoder", given/"audio"]
    blocked = {"HF_HUB_OFFLINE": "1", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, env=os.environ | blocked)
    assert done.returncode == 0, done.stderr
    report = read_json(tmp_path/"out"/"report.json")
    assert report["simulated"] == "" and report["preset"] == "tuned" and not report["failures"]
    html, tables = (tmp_path/"out"/"report.html").read_text(), [pd.read_csv(p) for p in (tmp_path/"out"/"tables").glob("*.csv")]
    assert all(title in html for title in titles)
    if only == "combined": assert [e["notebook"] for e in report["not_applicable"]] == ["combined"] and not tables  # one corpus alone
    else: assert not report["not_applicable"] and tables and all(len(t) for t in tables)
