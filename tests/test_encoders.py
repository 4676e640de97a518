"Network encoders: any batch gives the numbers of one by one, for every kind of network; loading is offline, silent and complete."
import subprocess, sys

import numpy as np, pytest, torch, transformers as tf
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from mser.core import InputError, project_root
from mser.encoders.base import OTHERS, About, batches_by_length, seen, told
from mser.encoders.emotion2vec import Emotion2vecEncoder, architecture, save_random
from mser.encoders.networks import frame_count, quiet
from mser.encoders.registry import ENCODERS, IDS, about, encoder_digest, load_encoder, modality_of
from mser.encoders.text import TextEncoder
from mser.encoders.wav2vec import Wav2vecEncoder

few = settings(max_examples=12, deadline=None, derandomize=True)
TOLERANCE = 1e-4
WORDS = "i am so happy for you they left without a word and nobody knows where".split()
TINY = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=40)
TEXT = {  # what each kind does with positions, padding and attention differs
    "bert": lambda: tf.BertModel(tf.BertConfig(**TINY)),
    "roberta": lambda: tf.RobertaModel(tf.RobertaConfig(**TINY, pad_token_id=0, max_position_embeddings=66)),
    "distilbert": lambda: tf.DistilBertModel(tf.DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, vocab_size=40)),
    "albert": lambda: tf.AlbertModel(tf.AlbertConfig(**TINY, embedding_size=16)),
    "electra": lambda: tf.ElectraModel(tf.ElectraConfig(**TINY, embedding_size=16)),
    "mpnet": lambda: tf.MPNetModel(tf.MPNetConfig(**TINY)),
    "deberta": lambda: tf.DebertaV2Model(tf.DebertaV2Config(**TINY, relative_attention=True, pos_att_type=["p2c", "c2p"])),
    "t5": lambda: tf.T5Model(tf.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)),
}
SPEECH = {"wav2vec2": (tf.Wav2Vec2Config, tf.Wav2Vec2Model), "hubert": (tf.HubertConfig, tf.HubertModel), "wavlm": (tf.WavLMConfig, tf.WavLMModel)}


def save_text(folder, kind, longest=64):
    "A text model with random weights and a tokenizer of a few words."
    torch.manual_seed(1)
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    with quiet():
        tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
                                   model_max_length=longest).save_pretrained(folder)
        network = TEXT[kind]().eval()
        for p in network.parameters(): p.data += 0.2*torch.randn_like(p)  # so that attention is not nearly uniform
        network.save_pretrained(folder)
    return folder


def save_speech(folder, family, norm):
    "A speech model with random weights."
    make_config, make = SPEECH[family]
    torch.manual_seed(1)
    config = make_config(**{k: v for k, v in TINY.items() if k != "vocab_size"}, conv_dim=(8,)*7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
                         feat_extract_norm=norm, do_stable_layer_norm=norm == "layer", conv_bias=norm == "layer")
    network = make(config)
    for p in network.encoder.layers.parameters(): p.data += 0.2*torch.randn_like(p)
    with quiet(): network.save_pretrained(folder)
    tf.Wav2Vec2FeatureExtractor(do_normalize=norm == "layer").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def emotion2vec_folder(tmp_path_factory):
    return save_random(tmp_path_factory.mktemp("models")/"tiny", architecture(width=32, prenet=1, depth=2, heads=4, conv_dim=16, groups=4, decoder_dim=16))


@pytest.fixture(scope="module", params=[*(f"{family}-{norm}" for family in SPEECH for norm in ("group", "layer")), "emotion2vec"])
def speech_encoder(request, tmp_path_factory, emotion2vec_folder):
    if request.param == "emotion2vec": return Emotion2vecEncoder(emotion2vec_folder, device="cpu")
    return Wav2vecEncoder(save_speech(tmp_path_factory.mktemp("models"), *request.param.split("-")), device="cpu")


@pytest.fixture(scope="module", params=TEXT)
def text_encoder(request, tmp_path_factory):
    return TextEncoder(save_text(tmp_path_factory.mktemp("models"), request.param), max_length=20, batch_size=4, device="cpu")


def sound(n, seed): return (np.random.default_rng(seed).standard_normal(n)*0.1 + 0.01).astype(np.float32)


def assert_same(together, alone):
    for a, b in zip(together, alone, strict=True):
        assert a.frames.shape == b.frames.shape
        np.testing.assert_allclose(a.frames, b.frames, atol=TOLERANCE)
        np.testing.assert_allclose(a.utterance, b.utterance, atol=TOLERANCE)


@few
@given(lengths=st.lists(st.integers(400, 12_000), min_size=2, max_size=5), batch_seconds=st.sampled_from([0.1, 1.0, 100.0]))
def test_any_batch_of_clips_is_one_by_one(speech_encoder, lengths, batch_seconds):
    clips = [sound(n, seed) for seed, n in enumerate(lengths)]
    alone = [speech_encoder.encode([c])[0] for c in clips]
    assert [len(e.frames) for e in alone] == [frame_count(n) for n in lengths]
    speech_encoder.batch_seconds = batch_seconds
    assert_same(speech_encoder.encode(clips), alone)
    assert_same([*speech_encoder.encode(clips[::-1])][::-1], alone)  # the order does not matter


@few
@given(texts=st.lists(st.lists(st.sampled_from([*WORDS, "unheard"]), max_size=30).map(" ".join), min_size=2, max_size=6))
def test_any_batch_of_texts_is_one_by_one(text_encoder, texts):
    together, alone = text_encoder.encode(texts), [text_encoder.encode([t])[0] for t in texts]
    assert_same(together, alone)
    for text, e in zip(texts, together):
        n = len(text.split()) + 2  # with the two markers; max_length is 20
        assert (len(e.frames), e.truncated) == (min(n, 20), n > 20)


def test_features_depend_on_the_input(speech_encoder, text_encoder):
    "Exactness is worth nothing where everything is the same."
    a, b = speech_encoder.encode([sound(8_000, 1), sound(8_000, 2)])
    assert np.abs(a.utterance - b.utterance).max() > 1e-3
    a, b = text_encoder.encode(["i am so happy", "nobody knows where"])
    assert np.abs(a.utterance - b.utterance).max() > 1e-3


def test_the_longest_text_that_fits_is_taken(text_encoder):
    folder = text_encoder.tokenizer.name_or_path
    assert len(TextEncoder(folder, max_length=64).encode(["word "*100])[0].frames) == 64
    with pytest.raises(InputError, match="Use 3 to 64"): TextEncoder(folder, max_length=65)


@pytest.mark.parametrize("text", ["", " ", "🙂", "na\u00efve \u2019quote\u2019 \x92", "word "*5_000, "\x00\ufffd"])
def test_odd_texts(text):
    encoded, = load_encoder("minilm", "text", device="cpu").encode([text])
    assert np.isfinite(encoded.frames).all() and encoded.truncated == (len(text) > 1000)


def test_half_precision_stays_close(emotion2vec_folder):
    clips = [sound(n, n) for n in (400, 3_000, 16_000)]
    full = Emotion2vecEncoder(emotion2vec_folder, device="cpu").encode(clips)
    half = load_encoder(f"{emotion2vec_folder}@bf16", "audio", device="cpu").encode(clips)
    for a, b in zip(full, half):
        assert b.frames.dtype == np.float32
        assert np.dot(a.utterance, b.utterance)/np.linalg.norm(a.utterance)/np.linalg.norm(b.utterance) > 0.999


OFFLINE = """
import socket, sys
def refuse(*_): raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
from mser.encoders.registry import ENCODERS, IDS, about, encoder_digest, load_encoder, modality_of
import logging, numpy as np, torch
torch.manual_seed(3); expected = torch.rand(1).item(); torch.manual_seed(3)
encoder = load_encoder(sys.argv[1], "audio", device="cpu")
assert torch.rand(1).item() == expected and logging.getLogger().level == logging.WARNING
encoder.encode([np.zeros(16_000, np.float32), np.ones(4_000, np.float32)])
"""


@pytest.mark.parametrize("kind", ["emotion2vec", "wavlm-group"])
def test_a_folder_is_loaded_offline_and_in_silence(kind, emotion2vec_folder, tmp_path):
    folder = emotion2vec_folder if kind == "emotion2vec" else save_speech(tmp_path, *kind.split("-"))
    done = subprocess.run([sys.executable, "-c", OFFLINE, str(folder)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@few
@given(st.lists(st.integers(0, 500), max_size=40), st.integers(1, 9), st.integers(1, 1_000))
def test_batches_keep_to_their_budget(lengths, size, budget):
    batches = batches_by_length(lengths, size, budget)
    assert sorted(i for b in batches for i in b.tolist()) == list(range(len(lengths)))
    for b in batches: assert len(b) <= size and (len(b) == 1 or len(b)*max(lengths[i] for i in b) <= budget)


CORPORA = st.sampled_from(["iemocap", "IEMOCAP", "crema-d", "CREMA_D", "cremad", "meld", "mine"])


@few
@given(st.none() | st.lists(CORPORA | st.just(OTHERS)).map(tuple), st.lists(CORPORA))
def test_silence_is_never_an_acquittal(contamination, corpora):
    card = About(name="e", modality="audio", pretraining="things", contamination=contamination, licence="MIT")
    found = seen(card, corpora)
    if contamination is None: assert found is None
    elif found is None: assert OTHERS in contamination  # nobody says of the rest
    else: assert set(found) <= set(corpora) and found == sorted(set(found))
    if found == []: assert not {c.casefold().replace("-", "").replace("_", "") for c in corpora} & {c.casefold().replace("-", "").replace("_", "") for c in contamination}
    if corpora: assert ("nobody says" in told(card, corpora), "was trained on" in told(card, corpora)) == (found is None, bool(found))


def test_the_published_models_and_nothing_else_is_told_of(tmp_path, monkeypatch):
    for size in ("seed", "base", "large"):
        for name in (f"emotion2vec_plus_{size}", f"iic/emotion2vec_plus_{size}@bf16", f"emotion2vec/emotion2vec_plus_{size}"):
            assert seen(about(name), ["IEMOCAP", "cremad", "meld", "emodb", "ravdess", "cmu-mosei"]) == ["IEMOCAP", "cmu-mosei", "cremad", "emodb", "meld", "ravdess"]
    base = about("emotion2vec_base")
    assert seen(base, ["iemocap", "meld", "mead", "cmu-mosei", "msp-podcast", "lssed", "emodb"]) == ["cmu-mosei", "iemocap", "mead", "meld", "msp-podcast"]
    assert about("egemaps").contamination == about("minilm").contamination == ()
    monkeypatch.chdir(tmp_path)
    for name in ("iic/emotion2vec_base", "emotion2vec_plus_large", "wavlm-base"):
        save_random(tmp_path/"models"/name, architecture(width=32, prenet=1, depth=1, heads=4, conv_dim=16, groups=4, decoder_dim=16))
        assert about(f"models/{name}").contamination is None and load_encoder(f"models/{name}", "audio", device="cpu").card.contamination is None
    assert about("somebody/emotion2vec_base").contamination is None


UNLOADED = """
import socket, sys
def refuse(*_): raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
from mser.encoders.registry import about, modality_of
print([(modality_of(name), about(name).name) for name in sys.argv[1:]], [m for m in ("transformers", "funasr", "opensmile", "modelscope") if m in sys.modules])
"""


def test_names_are_answered_without_the_network_and_without_loading():
    names = ["emotion2vec_plus_large@bf16", "bert", "facebook/wav2vec2-base@layer9", "iic/emotion2vec_base", "roberta-large", "org/hubert-german"]
    done = subprocess.run([sys.executable, "-c", UNLOADED, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ("[('audio', 'emotion2vec_plus_large@bf16'), ('text', 'bert-base-uncased'), ('audio', 'wav2vec2-base@layer9'), "
                                   "('audio', 'emotion2vec_base'), ('text', 'roberta-large'), ('audio', 'hubert-german')] []")


def test_a_folder_says_what_it_holds(tmp_path, emotion2vec_folder):
    assert modality_of(save_speech(tmp_path/"speech", "wavlm", "group")) == modality_of(emotion2vec_folder) == modality_of(f"{emotion2vec_folder}@bf16") == "audio"
    assert modality_of(save_text(tmp_path/"text", "bert")) == "text"
    assert all(modality_of(name) == modality for modality, names in ENCODERS.items() for name in names) and modality_of(IDS["wavlm-large"]) == "audio"
    (tmp_path/"empty").mkdir()
    with pytest.raises(InputError, match="there is no model in this folder"): modality_of(tmp_path/"empty")
    with pytest.raises(InputError, match="there is no such folder"): modality_of(tmp_path/"nowhere")


@pytest.mark.parametrize("changed", ["tokenizer.json", "config.json", "model.safetensors"])
def test_any_file_of_a_model_counts(tmp_path, changed):
    folder = save_text(tmp_path/"model", "bert")
    before = encoder_digest(folder, "text")
    assert encoder_digest(folder, "text") == before
    (folder/changed).write_bytes((folder/changed).read_bytes() + b" ")
    assert encoder_digest(folder, "text") != before


def test_the_benchmark_of_batches_runs_on_a_processor(small_emodb):
    script = project_root()/"tests"/"benchmarks"/"extraction.py"
    done = subprocess.run([sys.executable, script, small_emodb, *"--size tiny --device cpu --limit 6 --repeats 1 --threads 1".split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    title, head, *rows = done.stdout.splitlines()
    assert "6 recordings" in title and "ratio" in head and [row.split()[0] for row in rows] == ["fp32", "bf16"]
    assert all(float(row.split()[4]) > 0.999 for row in rows)  # least cosine
