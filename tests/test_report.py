"""Tables that say what is best and what is not told from it, their way to the runs, the claims made of them, and the page that shows it all."""
import re, shutil, subprocess, sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st

from mser import reported as reported_module, ties
from mser.claims import HOLDS, NOT_RUN, UNCLEAR, all_claims, claims_shown, write_claims
from mser.core import InputError, read_json, write_json
from mser.experiment import PROFILES, open_experiments
from mser.metrics import scores
from mser.page import write_report
from mser.report import save_figure, save_table, score_figure, score_table, table_html
from mser.reported import beside, reported, reported_file
from mser.results import Row
from mser.runs import LinearProbe, Majority, RunStore, run_many
from mser.stats import holm
from mser.ties import marked, scores_of_counts

ROWS = {"full model, tuned": LinearProbe(), "cross-attention, tuned": Majority(), "late fusion": LinearProbe(modalities=("audio",))}


def save(root, rows, split="test"):
    "The table of a workspace, as an experiment notebook writes it."
    numbers, printed = score_table(RunStore(root/"runs"), rows, split)
    save_table(root/"tables", "in_domain-sim-iemocap", numbers, printed, "Simulated data.", "mser reproduce", "IEMOCAP-like", rows)
    return numbers, printed


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A workspace with three baselines under the names of the methods that claims speak of."
    root = tmp_path_factory.mktemp("work")
    experiment, = experiments = open_experiments({"sim-iemocap": None}, root, "smoke")
    rows = [experiment.row(name, method) for name, method in ROWS.items()]
    with ThreadPoolExecutor(1) as pool: run_many([s for r in rows for s in r.specs], root, pool, progress=False)
    numbers, printed = save(root, rows)
    return root, experiments, rows, numbers, printed


@pytest.fixture
def copy(made, tmp_path): return Path(shutil.copytree(made[0], tmp_path/"copy", ignore=shutil.ignore_patterns("features")))


def test_the_same_runs_give_the_same_bytes(made, tmp_path):
    root, _, rows, *_ = made
    shutil.copytree(root/"runs", tmp_path/"runs")
    save(tmp_path, rows)
    assert {p.name: p.read_bytes() for p in (root/"tables").iterdir()} == {p.name: p.read_bytes() for p in (tmp_path/"tables").iterdir()}
    assert len(list((tmp_path/"tables").iterdir())) == 5


def test_every_row_leads_to_its_runs(made):
    root, _, rows, *_ = made
    html = (root/"tables"/"in_domain-sim-iemocap.html").read_text()
    links, ids = re.findall(r'href="([^"#]+)"', html), re.findall(r'id="([^"]+)"', html)
    assert len(links) == sum(len(r.specs) for r in rows) and all((root/"tables"/link).resolve().exists() for link in links)
    leads = re.findall(r'href="#([^"]+)"', html)
    assert len(leads) == len(set(leads)) == len(rows) and {*leads, "in_domain-sim-iemocap-runs"} == set(ids)
    assert read_json(root/"tables"/"in_domain-sim-iemocap.json")["runs"] == {r.name: [s.hash for s in r.specs] for r in rows}


def test_formats_say_the_same(made):
    root, _, rows, numbers, printed = made
    table = root/"tables"/"in_domain-sim-iemocap"
    texts = [table.with_suffix(s).read_text() for s in (".md", ".tex", ".html")]
    for ua in numbers["ua"]: assert all(f"{100*ua:.1f}" in text for text in texts)
    best = f"{100*numbers['ua'].max():.1f}"
    assert f"**{best}**" in texts[0] and rf"\textbf{{{best}}}" in texts[1] and re.search(f"<strong[^>]*>{best}</strong>", texts[2])
    assert all("Simulated data" in text and "jackknife over speakers" in text for text in texts)
    assert pd.read_csv(table.with_suffix(".csv"))["ua"].tolist() == numbers["ua"].tolist()


def test_names_are_escaped():
    html = table_html(pd.DataFrame({"": ["<script>", "a & b"], "UA": ["**1.0**", "1.0 ≈"]}))
    assert "<script>" not in html and "a &amp; b" in html and html.count('scope="row"') == 2 and html.count('scope="col"') == 2


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 7), st.integers(5, 80), st.integers(0, 2**32 - 1))
def test_scores_from_counts_are_the_scores(n_classes, n, seed):
    y, p = np.random.default_rng(seed).integers(0, n_classes, (2, n))
    counts = np.zeros((n_classes, n_classes), int)
    np.add.at(counts, (y, p), 1)
    np.testing.assert_allclose(scores_of_counts(counts), scores(y, p, n_classes), atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(1, 4), st.integers(1, 8))
def test_marks_know_the_best_whatever_the_order(seed, n_rows, n_seeds, n_speakers):
    rng = np.random.default_rng(seed)
    rows = [ties.Tested(("u",), "speakers", rng.integers(0, 9, (n_seeds, n_speakers, 3, 3))) for _ in range(n_rows)]
    found, order = marked(rows), rng.permutation(n_rows)
    pd.testing.assert_frame_equal(marked([rows[i] for i in order]), found.iloc[order].reset_index(drop=True))
    for name in ("ua", "wa", "wf1", "macro_f1"):
        assert (found[f"{name}_mark"] == "best").any() and set(found[f"{name}_mark"]) <= {"best", "tied", ""}
    if n_speakers == 1: assert "" not in set(found["ua_mark"]) # one speaker cannot tell two rows apart


def test_claims_are_read_off_the_runs(made):
    root, experiments, _, numbers, _ = made
    claims = {c.sentence: c for c in all_claims(root, experiments)}
    claim, ua = claims["The full model beats standard cross-attention"], numbers.set_index("row")["ua"]
    assert claim.ours.startswith(f"{100*(ua['full model, tuned'] - ua['cross-attention, tuned']):+.1f} points")
    assert claim.verdict in (HOLDS, UNCLEAR) and len(claim.runs) == 4 and all((root/"runs"/h).is_dir() for h in claim.runs)
    assert claims["The full model beats text alone"].verdict == NOT_RUN
    assert not any(c.reported for c in claims.values() if c.simulated)


def test_numbers_wait_for_their_corpora(made):
    numbers = [c for c in all_claims(*made[:2]) if c.kind == "number"]
    assert len(numbers) == 10 and {c.verdict for c in numbers} == {"needs licensed data"} and all(c.reported and not c.ours for c in numbers)


@pytest.fixture
def as_if_iemocap(made, tmp_path):
    "The same runs under the name of a corpus that the paper reports on: 4 classes, tables of the in-domain and ablation experiments."
    root, (experiment,), rows, *_ = made
    renamed = lambda s: s.model_copy(update={"data": s.data.model_copy(update={"corpus": "iemocap"})})
    for spec in (s for r in rows for s in r.specs):
        shutil.copytree(root/"runs"/spec.hash, tmp_path/"runs"/renamed(spec).hash)
        write_json(tmp_path/"runs"/renamed(spec).hash/"spec.json", renamed(spec).model_dump(mode="json"))
    ours = [Row(name, tuple(map(renamed, r.specs))) for name, r in zip(("full model, paper", "VGA", "EAAF"), rows)]
    numbers, printed = score_table(RunStore(tmp_path/"runs"), ours, "test")
    save_table(tmp_path/"tables", "in_domain-iemocap", numbers, printed, "", rows=ours)
    save_table(tmp_path/"tables", "ablation-iemocap", numbers, printed, "", rows=ours)
    effects = pd.DataFrame({"effect": ["VGA", "EAAF", "MICL"], "difference": [.02, .02, -.02], "low": [.01, .01, -.03], "high": [.03, .03, -.01], "p_holm": [.01, .01, .01]})
    save_table(tmp_path/"tables", "ablation-effects-iemocap", effects, effects.astype(str), "")
    corpus = experiment.prepared.corpus._replace(name="iemocap", title="IEMOCAP", read=print)
    return tmp_path, [replace(experiment, prepared=experiment.prepared._replace(corpus=corpus))], numbers


def test_a_licensed_corpus_gets_its_verdicts(as_if_iemocap):
    root, experiments, numbers = as_if_iemocap
    claims = [c for c in all_claims(root, experiments) if c.kind == "number"]
    claim, ours = claims[0], numbers.iloc[0]
    assert claim.sentence.startswith("IEMOCAP 4") and "UA 90.02" in claim.reported and claim.ours.startswith(f"UA {100*ours['ua']:.1f} (")
    assert claim.verdict == ("reproduced" if 100*ours["ua_high"] >= 90.02 else "not reproduced") and len(claim.runs) == 2
    gains = {c.sentence.split("(")[1][:4].strip(")"): c for c in claims if c.experiment == "ablation"}
    assert {name: c.verdict for name, c in gains.items()} == {"VGA": UNCLEAR, "EAAF": "reproduced", "MICL": "not reproduced"}
    assert "pooled mode" in gains["VGA"].note and gains["EAAF"].reported == "+0.28 points of validation UA"
    assert {c.verdict for c in claims if "CREMA-D" in c.sentence} == {"needs licensed data"}


def stale(root): # computed by other code
    for path in root.glob("runs/*/spec.json"): write_json(path, read_json(path) | {"code": "0"*16})
def lost(root): shutil.rmtree(next((root/"runs").iterdir()))
def unwritten(root): (root/"tables"/"in_domain-sim-iemocap.json").unlink()


@pytest.mark.parametrize("spoil", [stale, lost, unwritten])
def test_a_table_that_is_not_of_these_runs_counts_as_not_run(made, copy, spoil):
    spoil(copy)
    assert {c.verdict for c in all_claims(copy, made[1]) if c.kind == "direction"} == {NOT_RUN}


@pytest.mark.parametrize("now", [{"profile": PROFILES["quick"]}, {"mode": "sequence"}])
def test_a_table_of_another_profile_or_mode_counts_as_not_run(made, now):
    claims = all_claims(made[0], [replace(e, **now) for e in made[1]])
    assert {c.verdict for c in claims if c.kind == "direction"} == {NOT_RUN}


def test_directions_of_a_corpus_are_corrected_together(made):
    judged = [c for c in all_claims(*made[:2]) if c.experiment == "in_domain" and c.ours]
    assert len(judged) == 2 and all(c.note.endswith("Holm-corrected over 2 directions") for c in judged)
    best, *others = (ties.tested(RunStore(made[0]/"runs"), row) for row in made[2])
    alone = [ties.ua_difference(best, other).p for other in others]
    assert sorted(float(c.note.split()[1].strip(",")) for c in judged) == pytest.approx(sorted(holm(alone)), abs=6e-4)


def test_reported_numbers_of_an_installed_package(tmp_path, monkeypatch):
    def outside(): raise InputError("the notebooks are not beside the package", "Install from a clone")
    committed = reported_file()
    monkeypatch.setattr(reported_module, "project_root", outside)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(InputError, match="reported numbers"): reported_file()
    (tmp_path/"share"/"mser"/"paper").mkdir(parents=True)
    shutil.copy(committed, tmp_path/"share"/"mser"/"paper")
    assert reported_file().read_bytes() == committed.read_bytes()


def test_published_numbers_stand_beside_real_speech_only():
    lines = {"full model, paper": reported("in-domain", corpus="iemocap", classes=4)}
    assert beside(True, lines) is None and "90.02" in beside(False, lines)["full model, paper"]


@pytest.fixture
def page(made, copy):
    "A report with every kind of section."
    numbers, claims = made[3], all_claims(made[0], made[1])
    save_figure(score_figure(numbers, 4), copy/"figures", "scores", "Scores.", "UA of three methods", group="IEMOCAP-like")
    plt.close("all")
    write_claims(copy/"tables"/"claims.scorecard", claims)
    save_table(copy/"tables", "claims", claims_shown(claims), claims_shown(claims), "Claims.", group="Claims")
    (copy/"notebooks").mkdir()
    (copy/"notebooks"/"in_domain.html").write_text("<title>in_domain</title>")
    write_json(copy/"report.json", {
        "title": "A & B", "profile": "smoke", "preset": None, "mode": "pooled", "command": "mser reproduce", "simulated": "The utterances of it were", "groups": ["IEMOCAP-like"],
        "failures": [{"notebook": "efficiency", "reason": "<b>MemoryError</b>"}], "skipped": [{"item": "x", "reason": "truncated"}], "provenance": {"commit": "0123abc"},
        "notebooks": [{"name": "in_domain", "seconds": 1.0, "computed": 6, "failure": ""}], "not_applicable": [{"notebook": "finetune", "reason": "It needs two corpora."}]})
    return write_report(copy)


def test_page_is_whole_and_can_be_walked_without_a_mouse(page):
    html = page.read_text()
    ids, anchors = re.findall(r'\bid="([^"]+)"', html), re.findall(r'href="#([^"]+)"', html)
    assert len(ids) == len(set(ids)) and set(anchors) <= set(ids) and set(re.findall(r'aria-labelledby="([^"]+)"', html)) <= set(ids)
    links = [link for link in re.findall(r'(?:href|src)="([^"#]+)"', html) if not link.startswith("data:")]
    assert links and all((page.parent/link).exists() for link in links)
    assert [html.count(f"<{tag}") for tag in ("h1", "main", "nav", "script")] == [1, 1, 1, 0] and 'class="skip" href="#main"' in html
    assert all(re.search(r'alt="[^"]+"', tag) for tag in re.findall("<img[^>]+>", html)) and html.count("<th ") == html.count("<th scope=")
    levels = [int(level) for level in re.findall(r"<h(\d)", html)]
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:]))
    titles = re.findall(r'<h2 id="[^"]+">([^<]+)', html)
    assert titles == ["Claims of the paper", "IEMOCAP-like", "Does not apply", "Left out", "Provenance"]
    assert "&lt;b&gt;MemoryError" in html and "Simulated data." in html and "needs licensed data" in html


def test_page_is_the_same_each_time(page):
    before = page.read_bytes()
    assert write_report(page.parent).read_bytes() == before


MEASURE = "<script>document.title = [innerWidth, document.documentElement.scrollWidth, [...document.images].filter(i => !(i.loading = 'eager') || !i.naturalWidth).length].join()</script>"


def test_page_in_a_browser(page):
    "No errors, no requests, no broken picture, and nothing sticks out of a narrow window."
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None: pytest.skip("no Chromium on this machine")
    narrow = page.with_name("narrow.html")
    narrow.write_text(page.read_text().replace('loading="lazy"', "").replace("</body>", MEASURE + "</body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=500,900", f"--user-data-dir={page.parent/'profile'}", "--dump-dom"]
    done = subprocess.run([browser, *options, narrow.as_uri()], capture_output=True, text=True, timeout=120)
    width, wide, broken = map(int, re.search("<title>([^<]+)", done.stdout)[1].split(","))
    assert wide <= width and broken == 0 and "CONSOLE" not in done.stderr, done.stderr
