"""Medical images: DICOM frames, volumes of NIfTI and NumPy files, and pictures saved as DICOM.

pydicom (extra ``dicom``) and nibabel (extra ``nifti``) are imported when a file needs them. Of a
DICOM file only the pixels and the values that are needed to show them are used. No name, date or
number of a patient or study leaves this module, except what :func:`save_secondary_capture` is told
to keep. Text that is burned into the pixels stays there; if the file says that there is such text,
a warning says so too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from captum_clustered._files import check_file, require, whole

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "DICOM_SUFFIXES",
    "is_dicom",
    "is_volume",
    "read_dicom",
    "read_volume",
    "save_secondary_capture",
]

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
"""How the names of DICOM files end; others are known by their content."""

_VOLUME_SUFFIXES = (".npy", ".nii", ".nii.gz")
_MORE_DECODERS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
_PHOTOMETRIC = (
    "MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT",
    "YBR_RCT", "YBR_PARTIAL_420",
)  # fmt: skip
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
# what lets a viewer sort the picture to its study
_IDENTIFIERS = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
    "StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "AccessionNumber",
    "ReferringPhysicianName",
)  # fmt: skip
_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate",
    "StudyTime", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its name or by its first bytes.

    Example::

        >>> is_dicom(Path("missing.dcm")), is_dicom(Path("photo.jpg"))
        (True, False)
    """
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def is_volume(path: Path) -> bool:
    """Whether a file is a volume, by its name.

    Example::

        >>> is_volume(Path("scan.nii.gz")), is_volume(Path("scan.png"))
        (True, False)
    """
    return path.name.lower().endswith(_VOLUME_SUFFIXES)


# --- reading --------------------------------------------------------------------------------------


def read_dicom(path: str | Path, frame: int = 1) -> tuple[Image.Image, int]:
    """Reads a frame as a viewer would show it.

    Grey values of any depth, also floats, pass through the file's modality transformation (a
    rescaling or a table; DICOM PS3.3 C.11.1), then through its VOI transformation (the first window
    or table; C.11.2). Of a multi-frame file those of the frame are taken. Without a window,
    unsigned values of 8 bits, or of fewer bits than the file has room for, such as 12 in 16, keep
    the range that these bits have; others are scaled from their minimum to their maximum, without
    the padding.
    MONOCHROME1 is inverted, so that larger is always brighter. YBR and palette colours
    become RGB.

    Args:
        path (str or Path): The file.
        frame (int, optional): Which frame, counted from 1 as in DICOM. Default: 1

    Returns:
        *tuple*: The frame as PIL image in mode ``"RGB"``, and the number of frames in the file.

    Raises:
        ValueError: If the file is missing, is not DICOM, has no pixels or has no such frame, or if
            its pixels cannot be decoded. No message repeats the content of the file.
        ImportError: If pydicom is missing.
    """
    from PIL import Image

    path = Path(path)
    dataset = _dataset(path)
    if not any(name in dataset for name in _PIXELS):
        what = "is DICOM without any" if dataset.preamble else "is no DICOM file, but for its name"
        raise ValueError(f"image must have pixels; {path} {what}.")
    try:
        with _quiet():  # a value is read when it is asked for
            n_frames = int(dataset.get("NumberOfFrames") or 1)
            photometric = str(dataset.get("PhotometricInterpretation", ""))
            burned_in = str(dataset.get("BurnedInAnnotation", "")).upper() == "YES"
            bits = int(dataset.get("BitsStored") or 0)  # what is missing is said by the decoder
            high_bit = int(dataset.get("HighBit", bits - 1))
    except (TypeError, ValueError):
        raise ValueError(
            f"image {path} cannot be read: its number of frames or bits is no number. The file is "
            "damaged."
        ) from None
    if not 1 <= frame <= n_frames:
        raise ValueError(f"`frame` must be from 1 to {n_frames}, as {path} has; got {frame}.")
    if photometric not in _PHOTOMETRIC:
        raise ValueError(
            f"image must have one of the photometric interpretations {', '.join(_PHOTOMETRIC)}; "
            f"{path} has another, or none. Add the right one to the file, or save it as PNG."
        )
    if bits and high_bit + 1 != bits:  # old files; pydicom would take the wrong ones
        raise ValueError(
            f"image must have the bits of its values in the lowest places; {path} has them above "
            "empty ones (HighBit). Write the file anew, with values that are shifted down."
        )
    if burned_in:
        warnings.warn(
            f"{path} says that it has text burned into its pixels, which may name the patient; all "
            "pictures made of it show that text",
            stacklevel=2,
        )
    pixels = require("pydicom.pixels", "dicom", "to read DICOM")
    try:
        with _quiet():
            shown = _shown(pixels, dataset, frame)
    except Exception as error:  # a decoder's message may repeat the content of the file
        syntax = getattr(dataset.file_meta.get("TransferSyntaxUID"), "name", "unknown")
        remedy = "The file is damaged, or its pixels are not as its header says."
        decoders = _decoders(pixels, dataset)
        if not decoders:
            remedy = f"These pixels need a decoder: {_MORE_DECODERS}."
        elif decoders == {"pillow"}:  # which knows some bit depths and colours of a syntax only
            remedy = f"The file is damaged, or needs more than Pillow decodes: {_MORE_DECODERS}."
        raise ValueError(
            f"image {path} cannot be decoded ({type(error).__name__}; transfer syntax {syntax}). "
            f"{remedy}"
        ) from None
    return Image.fromarray(np.round(255 * shown).astype(np.uint8)).convert("RGB"), n_frames


def _decoders(pixels: Any, dataset: Any) -> set[str]:
    """What is installed and knows the file's kind of compression; of pixels that are not, numpy."""
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = pixels.get_decoder(syntax)
    except NotImplementedError:
        return set()
    return set(decoder.available_plugins) if syntax.is_compressed else {"numpy"}


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses warnings, since those of pydicom repeat the values of tags."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _dataset(path: Path) -> Any:
    pydicom = require("pydicom", "dicom", "to read DICOM")
    check_file("image", path)
    try:
        with _quiet():
            dataset = pydicom.dcmread(path, force=path.suffix.lower() in DICOM_SUFFIXES)
            if not dataset:
                raise ValueError
            if "TransferSyntaxUID" not in dataset.file_meta:  # a bare data set
                dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    except Exception as error:  # the parser may raise anything
        raise ValueError(
            f"image {path} cannot be read as DICOM ({type(error).__name__})."
        ) from None
    return dataset


def _shown(pixels: Any, dataset: Any, frame: int) -> np.ndarray:
    """The frame in [0, 1], `(H, W)` or `(H, W, 3)`."""
    n_frames = int(dataset.get("NumberOfFrames") or 1)
    values = pixels.pixel_array(dataset, index=frame - 1 if n_frames > 1 else None)
    photometric = str(dataset.PhotometricInterpretation)
    if photometric == "PALETTE COLOR":
        _trim_palette(dataset)
        coloured = pixels.apply_color_lut(values, dataset)
        return np.asarray(coloured / float(np.iinfo(coloured.dtype).max))
    if values.ndim == 3:  # RGB by now, whatever it was in the file
        return np.asarray(np.clip(values / (2.0 ** int(dataset.BitsStored) - 1), 0, 1))
    view = _with_groups(dataset, frame)
    stored, values = values, _modality(values, view)
    if view.get("VOILUTSequence"):
        table = view.VOILUTSequence[0]
        gray = _looked_up(np.round(values), table, view) / (2.0 ** int(table.LUTDescriptor[2]) - 1)
    elif _has_window(view):
        # what is far below and above the window tells the range that it gives
        ends = np.array([-1e12, 1e12])
        with np.errstate(over="ignore"):
            low, high = pixels.apply_windowing(ends, view)
            gray = (pixels.apply_windowing(values, view) - low) / (high - low)
    elif (limits := _limits(view)) is not None:
        gray = (values - limits[0]) / (limits[1] - limits[0])
    else:
        gray = _stretched(values, ~_is_padding(stored, dataset))
    gray = np.asarray(np.clip(gray, 0, 1))
    if not np.isfinite(gray).all():  # a rescaling by zero, or by what is no number
        raise ValueError
    return 1 - gray if photometric == "MONOCHROME1" else gray


def _modality(values: np.ndarray, view: Any) -> np.ndarray:
    if view.get("ModalityLUTSequence"):
        return _looked_up(values, view.ModalityLUTSequence[0], view)
    rescaled: np.ndarray = values * float(view.RescaleSlope) + float(view.RescaleIntercept)
    return rescaled


def _looked_up(values: np.ndarray, table: Any, view: Any) -> np.ndarray:
    """The entries of a modality or VOI table; values outside get its first or its last entry.

    Source: DICOM PS3.3 C.11.1.1.1. In pydicom, indices into entries of 8 bits are taken modulo 256.
    """
    count, first, _ = (int(number) for number in table.LUTDescriptor)
    if values.min() < 0 and first >= 2**15:  # signed, but read by the sign of the pixels
        first -= 2**16
    entries: Any = table.LUTData
    if isinstance(entries, bytes):
        count = (count & 0xFFFF) or 2**16
        order = "<" if view.file_meta.TransferSyntaxUID.is_little_endian else ">"
        kind = f"{order}u2" if len(entries) >= 2 * count else "u1"
        entries = np.frombuffer(entries, kind)[:count]
    entries = np.atleast_1d(entries)
    found: np.ndarray = entries[np.clip(values.astype(np.int64) - first, 0, len(entries) - 1)]
    return found


def _trim_palette(dataset: Any) -> None:
    """Takes the byte away that makes an odd number of entries of 8 bits even."""
    for colour in ("Red", "Green", "Blue"):
        count = dataset.get(f"{colour}PaletteColorLookupTableDescriptor", [0])[0]
        data = dataset.get(f"{colour}PaletteColorLookupTableData")
        if data is not None and count % 2 and len(data) == count + 1:
            setattr(dataset, f"{colour}PaletteColorLookupTableData", data[:count])


def _has_window(view: Any) -> bool:
    """Whether there is a window that can be applied; then it is made ready."""
    if "WindowWidth" not in view or "WindowCenter" not in view:
        return False
    width = float(np.ravel(view.WindowWidth)[0])
    linear = str(view.get("VOILUTFunction", "LINEAR")).upper() == "LINEAR"
    if linear and 0 < width < 1:  # of small real values; the rule for integers has no such window
        view.VOILUTFunction = "LINEAR_EXACT"
    return width > 0


def _limits(view: Any) -> tuple[float, float] | None:
    """The smallest and the largest value of the stored bits, behind the modality transformation.

    None where all bits of a deeper number are used, which says little.
    """
    if view.get("ModalityLUTSequence"):
        depth = int(view.ModalityLUTSequence[0].LUTDescriptor[2])
        return (0, 2.0**depth - 1) if depth < 16 else None
    bits = int(view.BitsStored)
    if int(view.PixelRepresentation) or not (bits == 8 or bits < int(view.BitsAllocated)):
        return None
    slope, intercept = float(view.RescaleSlope), float(view.RescaleIntercept)
    low, high = sorted((intercept, intercept + (2**bits - 1) * slope))
    return low, high


def _is_padding(stored: np.ndarray, dataset: Any) -> np.ndarray:
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, dtype=bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((value, value if limit is None else limit))
    inside: np.ndarray = (stored >= low) & (stored <= high)
    return inside


_ALWAYS = ("BitsAllocated", "BitsStored", "PixelRepresentation", "PhotometricInterpretation")
# of each, a frame's own replaces what the file says of all frames
_MODALITY = ("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept", "RescaleType")
_VOI = ("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction")


def _with_groups(dataset: Any, frame: int) -> Any:
    """A data set that has the frame's own window and rescaling at its top level."""
    from pydicom.dataset import Dataset

    view = Dataset()
    view.file_meta = dataset.file_meta  # says in which order a table's bytes are
    # what counts bits is missing of floats, which may be negative and have no range of their own
    view.BitsStored, view.PixelRepresentation = dataset.BitsAllocated, 1
    for name in _ALWAYS:
        if name in dataset:
            setattr(view, name, dataset[name].value)
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]
    own = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])[frame - 1 : frame]
    sources = [dataset]
    for group in [*shared, *own]:
        for kind in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            sources += list(group.get(kind) or [])[:1]
    for names in (_MODALITY, _VOI):
        for source in sources:
            said = {name: source[name] for name in names if source.get(name) not in (None, "")}
            if said:
                for name in names:
                    if name in view:
                        delattr(view, name)
                for element in said.values():
                    view.add(element)
    for name, value in (("RescaleSlope", 1), ("RescaleIntercept", 0)):
        if view.get(name) is None:
            setattr(view, name, value)
    return view


def _stretched(values: np.ndarray, inside: Any) -> np.ndarray:
    counted = values[np.broadcast_to(inside, values.shape)]
    counted = counted if counted.size else values
    low, high = float(counted.min()), float(counted.max())
    scaled: np.ndarray = (values.astype(float) - low) / ((high - low) or 1)
    return scaled


def read_volume(path: str | Path) -> np.ndarray:
    """Reads a volume for a network of three dimensions.

    Args:
        path (str or Path): A ``.npy`` file, never unpickled, or NIfTI (``.nii``, ``.nii.gz``),
            scaled as its header says. NIfTI is reoriented to the axes right, anterior, superior and
            returned as `(slice, row, column)`: the lowest slice first, the front of the patient on
            top, the patient's right side on the left, as radiologists look at it.

    Returns:
        *array*: float32, `(D, H, W)` or, from a ``.npy`` file of four axes, `(C, D, H, W)`.

    Raises:
        ValueError: If the file is missing, damaged or no such volume.
        ImportError: If nibabel is missing.
    """
    path = Path(path)
    check_file("volume", path)
    read: Callable[[Path], np.ndarray] = _read_npy
    if path.suffix.lower() != ".npy":
        require("nibabel", "nifti", "to read NIfTI")
        read = _read_nifti
    try:
        volume = read(path)
    except Exception as error:  # the message must not repeat the header
        raise ValueError(f"volume {path} cannot be read ({type(error).__name__}).") from None
    axes = (3,) if read is _read_nifti else (3, 4)
    if volume.ndim not in axes or not volume.size or volume.dtype.kind not in "biuf":
        raise ValueError(
            f"volume must have real numbers in {' or '.join(map(str, axes))} axes; {path} has "
            f"shape {volume.shape} and dtype {volume.dtype}."
        )
    return np.ascontiguousarray(volume, dtype=np.float32)


def _read_npy(path: Path) -> np.ndarray:
    volume: np.ndarray = np.load(path, allow_pickle=False)
    return volume


def _read_nifti(path: Path) -> np.ndarray:
    import nibabel

    canonical: Any = nibabel.as_closest_canonical
    image = canonical(nibabel.load(path))
    voxels: np.ndarray = np.asarray(image.dataobj)
    if voxels.ndim == 4 and voxels.shape[3] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim != 3:
        return voxels
    # x to the patient's right side, y to the front, z up, each growing; rows count downwards
    return voxels[::-1, ::-1, :].transpose(2, 1, 0)


# --- writing --------------------------------------------------------------------------------------


def save_secondary_capture(
    picture: np.ndarray,
    path: str | Path,
    *,
    source: str | Path | None = None,
    frame: int = 1,
    keep_identifiers: bool = False,
    description: str = "Heat map of a classifier, not for diagnosis",
) -> None:
    """Saves a picture as DICOM Secondary Capture, in colour and uncompressed.

    Args:
        picture (array): `(H, W, 3)`, float in [0, 1].
        path (str or Path): Where to.
        source (str or Path, optional): The DICOM file that the picture was made from.
            Default: None
        frame (int, optional): Which of its frames, from 1. Default: 1
        keep_identifiers (bool, optional): Whether patient and study of `source` are written, with a
            reference to the image, so that the picture becomes part of the study. Otherwise patient
            and study stay empty, and all UIDs are new. Default: False
        description (str, optional): Description of the series and of the derivation.
            Default: ``"Heat map of a classifier, not for diagnosis"``

    Raises:
        ValueError: If identifiers are to be kept, but there is no source.
        ImportError: If pydicom is missing.
    """
    require("pydicom", "dicom", "to write DICOM")
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, generate_uid

    if keep_identifiers and source is None:
        raise ValueError("`keep_identifiers` must have a `source`, a DICOM file; got none.")
    picture = np.asarray(picture)
    if picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"`picture` must have shape (H, W, 3); got {picture.shape}.")
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = UID(_SECONDARY_CAPTURE)
    dataset.SOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = generate_uid()
    for name in _EMPTY:
        setattr(dataset, name, "")
    if source is not None:
        original = _dataset(Path(source))
        if str(original.get("BurnedInAnnotation", "")).upper() in ("YES", "NO"):
            dataset.BurnedInAnnotation = str(original.BurnedInAnnotation).upper()
        if keep_identifiers:
            with _quiet():
                _keep(dataset, original, frame)
    dataset.Modality = "OT"
    dataset.ConversionType = "WSD"  # made at a workstation
    dataset.Manufacturer = "captum_clustered"
    dataset.SeriesDescription = description[:64]
    dataset.SeriesNumber = None
    dataset.InstanceNumber = 1
    dataset.PatientOrientation = ""
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.DerivationDescription = description[:1024]
    dataset.SamplesPerPixel = 3
    dataset.PhotometricInterpretation = "RGB"
    dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = picture.shape[:2]
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    data = np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8).tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = UID(_EXPLICIT_LITTLE)
    dataset.file_meta = meta
    with whole(Path(path)) as part:
        dataset.save_as(part, enforce_file_format=True)


def _keep(dataset: Any, original: Any, frame: int) -> None:
    from pydicom.dataset import Dataset

    for name in _IDENTIFIERS:
        if original.get(name) is not None:
            setattr(dataset, name, str(original.get(name)))
    if "SOPClassUID" in original and "SOPInstanceUID" in original:
        reference = Dataset()
        reference.ReferencedSOPClassUID = original.SOPClassUID
        reference.ReferencedSOPInstanceUID = original.SOPInstanceUID
        if int(original.get("NumberOfFrames") or 1) > 1:
            reference.ReferencedFrameNumber = frame
        dataset.SourceImageSequence = [reference]
