"""The whole way from recordings to scores, on real speech, against figures that were measured without any of our code.

Plain openSMILE on soxr-resampled EmoDB and scikit-learn give the figures below: unweighted accuracy (UA) over the pooled predictions of
leave-one-speaker-out. A mistake anywhere on the way (rate, order of ids, labels, a mixed-up row in a store) moves them.
"""
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from mser.corpora.emodb import emodb
from mser.encoders.audio import EgemapsEncoder
from mser.features import extract
from mser.labels import label_set

CLASSIFIERS = {"svm": SVC(kernel="linear", class_weight="balanced"), "logistic": LogisticRegression(class_weight="balanced", max_iter=5000)}
MEASURED = [("svm", "emodb-7", 535, 0.578), ("svm", "4", 339, 0.723), ("logistic", "emodb-7", 535, 0.626), ("logistic", "4", 339, 0.713)]


@pytest.fixture(scope="session")
def speech(emodb_folder, tmp_path_factory):
    manifest = emodb(emodb_folder)
    return manifest, extract(manifest, EgemapsEncoder(), tmp_path_factory.mktemp("features"), workers=2, progress=False)


def test_store_holds_every_utterance(speech):
    manifest, store = speech
    assert store.ids == manifest.ids and len(store) == 535 and store.n_frames == 535*196 and not store.skipped and not store.silent


@pytest.mark.parametrize("classifier, labels, n, measured", MEASURED)
def test_scores_are_those_of_plain_opensmile(speech, classifier, labels, n, measured):
    manifest, store = speech
    manifest = manifest.keep(label_set(labels))
    assert len(manifest) == n
    classes, speakers = label_set(labels).encode(manifest.table.label), manifest.table.speaker
    predicted = cross_val_predict(make_pipeline(StandardScaler(), CLASSIFIERS[classifier]), store.pooled(manifest.ids), classes,
                                  groups=speakers, cv=LeaveOneGroupOut())
    assert recall_score(classes, predicted, average="macro") == pytest.approx(measured, abs=0.01)
