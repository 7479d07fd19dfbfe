"""MODEL and the request of an evaluation, as they are prepared."""

from piat_hub.config import EvalConfig
from piat_hub.evaluation import request

MODELS = """
from torch import nn
attacked = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


def test_mean_and_std_stand_before_the_model_and_not_before_its_surrogate(tmp_path, monkeypatch):
    (tmp_path / "some_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    asked = EvalConfig(mean=(0.5,), std=(0.25,), surrogate="some_models:other", dataset="digits", n=4)
    prepared = request.prepare_evaluation("some_models:attacked", asked)
    import some_models

    assert prepared.surrogate is some_models.other
    assert prepared.model[1] is some_models.attacked and prepared.model[0].mean.flatten().tolist() == [0.5]
