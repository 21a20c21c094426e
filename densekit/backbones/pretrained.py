"""Published weights by name: ``torchvision/IMAGENET1K_V1`` and ``timm/<tag>``, downloaded once and kept.

The files go where torchvision and timm keep theirs (``torch.hub.get_dir()`` and the Hub's cache), so what they have
fetched is used, without the internet too.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NoReturn

import torch

from densekit.errors import DensekitError, nearest

PUBLISHERS = ("torchvision", "timm")

ANSWER_SECONDS = 5.0
"""How long to wait for the first sign of the publisher before saying that there is no connection."""


def is_name(source: str) -> bool:
    """Whether a source is a publisher's name, not a file; a file of that name wins."""
    return source.split("/")[0] in PUBLISHERS and not Path(source).is_file()


def resolve(backbone: str, source: str) -> tuple[Path, str | None]:
    """The file of published weights, downloaded where it is not in the cache; and their licence, where known.

    Args:
        backbone: the backbone's registered name, such as ``resnet50`` or ``timm/resnet50d``.
        source: ``torchvision/<member of its weights enum>``, ``timm/<tag>`` or ``timm/<network>.<tag>``.

    Raises:
        DensekitError: unknown name, or no connection.
    """
    publisher, _, tag = source.partition("/")
    if publisher == "torchvision":
        return _torchvision(backbone, tag), None
    return _timm(backbone.removeprefix("timm/"), tag)


def _torchvision(backbone: str, tag: str) -> Path:
    import torchvision

    try:
        known = torchvision.models.get_model_weights(backbone)
    except ValueError:
        raise DensekitError(
            f"torchvision has no network {backbone!r}, so there are no weights torchvision/{tag}; give a file, or a "
            f"backbone that it has ({nearest(backbone, torchvision.models.list_models(torchvision.models))})"
        ) from None
    if tag not in known.__members__:
        raise DensekitError(f"torchvision has no weights {tag!r} for {backbone!r}; {nearest(tag, known.__members__)}")
    url = str(known[tag].url)
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        hash_prefix = file.stem.rsplit("-", 1)[-1]
        try:
            torch.hub.download_url_to_file(url, str(file), hash_prefix, progress=True)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            _no_connection(f"torchvision/{tag}", url, error)
    return file


def _timm(network: str, tag: str) -> tuple[Path, str | None]:
    import timm

    full = tag if timm.models.is_model(tag.split(".")[0]) else f"{network}.{tag}"
    known = timm.list_pretrained(f"{full.split('.')[0]}.*")
    if "." in full and full not in known:
        raise DensekitError(f"timm has no weights {full!r}; {nearest(full, known or timm.list_pretrained())}")
    config = timm.get_pretrained_cfg(full)
    if config is None or not config.hf_hub_id:
        raise DensekitError(f"timm publishes no weights for {full!r}; {nearest(full, known or timm.list_pretrained())}")
    return _from_hub(f"timm/{tag}", config), config.license


def _from_hub(source: str, config: Any) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    names = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, name)
        if isinstance(cached, str):
            return Path(cached)
    _probe(source, config.hf_hub_id)
    for name in names:
        try:
            return Path(huggingface_hub.hf_hub_download(config.hf_hub_id, name))
        except LocalEntryNotFoundError as error:
            _no_connection(source, config.hf_hub_id, error)
        except EntryNotFoundError:
            continue
        except (OSError, ValueError) as error:
            _no_connection(source, config.hf_hub_id, error)
    raise DensekitError(
        f"weights {source}: {config.hf_hub_id} holds neither of {', '.join(names)}; give a file instead"
    )


def _probe(source: str, repository: str) -> None:
    """Fail within seconds without a connection: the Hub's own client tries for most of a minute."""
    import huggingface_hub
    import huggingface_hub.constants

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        _no_connection(source, repository, OSError("HF_HUB_OFFLINE is set"))
    try:
        request = urllib.request.Request(huggingface_hub.constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        return  # an answer, whatever it says
    except OSError as error:
        _no_connection(source, repository, error)


def _no_connection(source: str, address: str, error: BaseException) -> NoReturn:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    raise DensekitError(
        f"weights {source} could not be downloaded from {address} ({reason}); connect to the internet, or fetch the "
        f"file elsewhere and give its path"
    ) from None
