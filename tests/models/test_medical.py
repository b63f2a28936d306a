"""DICOM, NIfTI and NumPy volumes: right pixels, the right way up, and no word of the patient."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from captum_clustered.app import cli
from captum_clustered.models import medical
from captum_clustered.models.medical import (
    is_dicom,
    is_volume,
    read_dicom,
    read_volume,
    save_secondary_capture,
)

pydicom = pytest.importorskip("pydicom", reason="needs pydicom")
nibabel = pytest.importorskip("nibabel", reason="needs nibabel")

PATIENT = "Doe^Secret"
NUMBER = "ID-4711-SECRET"
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def _dicom(path, pixels, photometric="MONOCHROME2", bits=8, signed=False, **tags):
    """A file with pixels `(frames, H, W)`, `(H, W)` or `(H, W, 3)`."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage, generate_uid

    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = UltrasoundImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
    data.PatientName, data.PatientID, data.PatientBirthDate = PATIENT, NUMBER, "19700101"
    data.InstitutionName, data.StudyDate = "Secret Hospital", "20200229"
    colours = photometric in ("RGB", "YBR_FULL")
    if pixels.ndim == 3 and not colours:
        data.NumberOfFrames = len(pixels)
    rows = pixels.shape[0 if colours else -2]
    data.Rows, data.Columns = rows, pixels.shape[1 if colours else -1]
    data.SamplesPerPixel = 3 if colours else 1
    if colours:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = photometric
    data.BitsAllocated = 8 * pixels.dtype.itemsize
    data.BitsStored, data.HighBit = bits, bits - 1
    data.PixelRepresentation = int(signed)
    data.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def _gray(path, frame=1):
    image, _ = read_dicom(path, frame)
    assert image.mode == "RGB"
    pixels = np.asarray(image)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def test_bytes_stay_as_they_are(tmp_path):
    np.testing.assert_array_equal(_gray(_dicom(tmp_path / "a.dcm", RAMP)), RAMP)


def test_monochrome1_is_turned_round(tmp_path):
    found = _gray(_dicom(tmp_path / "a.dcm", RAMP, "MONOCHROME1"))
    np.testing.assert_array_equal(found, 255 - RAMP)


def test_deep_values_are_stretched_without_the_padding(tmp_path):
    pixels = np.array([[-2000, 100], [300, 500]], dtype=np.int16)
    path = _dicom(tmp_path / "a.dcm", pixels, bits=16, signed=True, PixelPaddingValue=-2000)
    np.testing.assert_array_equal(_gray(path), [[0, 0], [128, 255]])


@pytest.mark.parametrize(("bits", "top"), [(10, 1023), (12, 4095), (14, 16383)])
def test_bits_that_do_not_fill_their_number_keep_their_range(tmp_path, bits, top):
    pixels = np.array([[0, top // 8], [top // 4, top // 2]], dtype=np.uint16)
    found = _gray(_dicom(tmp_path / "a.dcm", pixels, bits=bits))
    np.testing.assert_allclose(found, [[0, 32], [64, 127]], atol=0.6)
    tags = {"RescaleSlope": "2", "RescaleIntercept": "-1024"}
    np.testing.assert_array_equal(
        _gray(_dicom(tmp_path / "b.dcm", pixels, bits=bits, **tags)), found
    )


def test_a_file_that_is_dicom_by_its_name_only_is_called_so(tmp_path):
    (tmp_path / "a.dcm").write_text("PatientName: Nobody, and more words than a header has")
    with pytest.raises(ValueError, match=r"a\.dcm is no DICOM file, but for its name\.") as caught:
        read_dicom(tmp_path / "a.dcm")
    assert "Nobody" not in str(caught.value)


def test_windows_are_applied_after_the_rescaling(tmp_path):
    pixels = np.array([[0, 1000], [1050, 2000]], dtype=np.int16)
    path = _dicom(
        tmp_path / "a.dcm",
        pixels,
        bits=12,
        signed=True,
        RescaleSlope=1,
        RescaleIntercept=-1000,
        WindowCenter=50,
        WindowWidth=101,
    )
    found = _gray(path)  # from 0 to 100 after the rescaling
    np.testing.assert_allclose(found, [[0, 0], [127.5, 255]], atol=2)


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_colours(tmp_path, photometric):
    colours = np.array([[[250, 10, 20], [10, 250, 30]], [[20, 30, 250], [128, 128, 128]]], np.uint8)
    stored = colours
    if photometric == "YBR_FULL":
        stored = np.asarray(Image.fromarray(colours).convert("YCbCr"))
    image, frames = read_dicom(_dicom(tmp_path / "a.dcm", stored, photometric))
    assert frames == 1
    np.testing.assert_allclose(np.asarray(image), colours, atol=4)


def test_palettes(tmp_path):
    pixels = np.array([[0, 1], [2, 3]], dtype=np.uint8)
    tables = {}
    for number, name in enumerate(("Red", "Green", "Blue")):
        values = np.roll(np.array([0, 20000, 40000, 65535], dtype="<u2"), number)
        tables[f"{name}PaletteColorLookupTableDescriptor"] = [4, 0, 16]
        tables[f"{name}PaletteColorLookupTableData"] = values.tobytes()
    image, _ = read_dicom(_dicom(tmp_path / "a.dcm", pixels, "PALETTE COLOR", **tables))
    expected = np.array([0, 20000, 40000, 65535]) / 257
    np.testing.assert_allclose(np.asarray(image)[..., 0].ravel(), expected, atol=1)
    np.testing.assert_allclose(np.asarray(image)[..., 1].ravel(), np.roll(expected, 1), atol=1)


def test_frames_are_counted_from_one(tmp_path):
    path = _dicom(tmp_path / "a.dcm", np.stack([RAMP, RAMP[::-1], RAMP.T]))
    np.testing.assert_array_equal(_gray(path, 2), RAMP[::-1])
    assert read_dicom(path)[1] == 3
    with pytest.raises(ValueError, match=r"`frame` must be from 1 to 3, .*; got 4"):
        read_dicom(path, 4)


def test_faults_are_said_without_the_files_words(tmp_path):
    broken = tmp_path / "broken.dcm"
    whole = _dicom(tmp_path / "whole.dcm", RAMP).read_bytes()
    broken.write_bytes(whole[:-200])
    nothing = tmp_path / "nothing.dcm"
    nothing.write_bytes(b"no DICOM at all")
    for path, words in (
        (broken, "cannot be decoded .*. The file is damaged, or its pixels are not as its header"),
        (nothing, "DICOM"),
        (tmp_path / "missing.dcm", "does not exist"),
        (_dicom(tmp_path / "p.dcm", RAMP, "ARGB"), "photometric interpretations .* has another"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            read_dicom(path)
        assert "Secret" not in str(caught.value)
        assert "4711" not in str(caught.value)


def test_what_pillow_cannot_decode_is_not_blamed_on_the_file(monkeypatch):
    """12 bits of JPEG: Pillow knows the syntax, but not that many bits."""
    monkeypatch.setattr(medical, "_decoders", lambda *_: {"pillow"})
    monkeypatch.setattr(medical, "_shown", lambda *_: [][0])
    path = pydicom.data.get_testdata_file("JPGExtended.dcm", download=False)
    words = "JPEG Extended .*needs more than Pillow decodes: pip install pylibjpeg"
    with pytest.raises(ValueError, match=words):
        read_dicom(path)


def test_decoders_are_those_of_the_files_compression():
    path = pydicom.data.get_testdata_file("JPGExtended.dcm", download=False)
    dataset = pydicom.dcmread(path)
    assert "pillow" in medical._decoders(pydicom.pixels, dataset)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    assert medical._decoders(pydicom.pixels, dataset) == {"numpy"}


def test_a_number_of_frames_that_is_none_is_said_without_the_files_words(tmp_path):
    path = _dicom(tmp_path / "a.dcm", np.stack([RAMP] * 12))
    whole = path.read_bytes()
    assert whole.count(b"IS\x02\x0012") == 1
    path.write_bytes(whole.replace(b"IS\x02\x0012", b"IS\x02\x001A"))
    with pytest.raises(ValueError, match="its number of frames or bits is no number") as caught:
        read_dicom(path)
    assert "1A" not in str(caught.value)


def test_files_are_told_apart(tmp_path):
    bare = tmp_path / "export"
    bare.write_bytes(_dicom(tmp_path / "a.dcm", RAMP).read_bytes())
    assert is_dicom(bare)
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    assert not is_dicom(tmp_path / "a.png")
    assert is_volume(tmp_path / "Scan.NII.GZ")


def test_text_in_the_pixels_is_warned_of(tmp_path):
    path = _dicom(tmp_path / "a.dcm", RAMP, BurnedInAnnotation="YES")
    with pytest.warns(UserWarning, match="text burned into its pixels"):
        read_dicom(path)


# Volumes


def test_nifti_is_turned_as_radiologists_look_at_it(tmp_path):
    voxels = np.zeros((4, 5, 6), dtype=np.float32)  # x to the left, y to the front, z up
    voxels[0, 4, 5] = 1  # the patient's right, front, top
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])
    voxels = voxels[::-1]  # stored the other way round: x grows to the left
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    assert volume.shape == (6, 5, 4)
    place = np.unravel_index(volume.argmax(), volume.shape)
    assert place[0] == 5  # the last slice is the highest
    assert place[1] == 0  # the front on top


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.zeros((3, 4)), r"3 or 4 axes; .* shape \(3, 4\)"),
        (np.zeros((2, 2, 2), dtype=complex), "real numbers"),
        (None, "cannot be read"),
    ],
)
def test_volumes_that_are_none(tmp_path, content, words):
    path = tmp_path / "a.npy"
    if content is None:
        path.write_bytes(b"not an array")
    else:
        np.save(path, content)
    with pytest.raises(ValueError, match=words):
        read_volume(path)


def test_objects_are_never_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read"):
        read_volume(tmp_path / "a.npy")


# Secondary Capture


def test_a_picture_becomes_dicom_without_the_patient(tmp_path):
    picture = np.random.default_rng(0).random((5, 7, 3))
    source = _dicom(tmp_path / "a.dcm", RAMP)
    save_secondary_capture(picture, tmp_path / "b.dcm", source=source)
    saved = pydicom.dcmread(tmp_path / "b.dcm")
    np.testing.assert_array_equal(saved.pixel_array, np.round(255 * picture).astype(np.uint8))
    original = pydicom.dcmread(source)
    assert saved.PatientName == ""
    assert saved.StudyInstanceUID != original.StudyInstanceUID
    assert b"Secret" not in (tmp_path / "b.dcm").read_bytes()
    save_secondary_capture(picture, tmp_path / "c.dcm", source=source, keep_identifiers=True)
    kept = pydicom.dcmread(tmp_path / "c.dcm")
    assert str(kept.PatientName) == PATIENT
    assert kept.StudyInstanceUID == original.StudyInstanceUID
    assert kept.SeriesInstanceUID != original.SeriesInstanceUID
    assert kept.SourceImageSequence[0].ReferencedSOPInstanceUID == original.SOPInstanceUID


def test_identifiers_need_a_source(tmp_path):
    with pytest.raises(ValueError, match="`keep_identifiers` must have a `source`"):
        save_secondary_capture(np.zeros((2, 2, 3)), tmp_path / "a.dcm", keep_identifiers=True)


# The command


def _explain(*arguments):
    return CliRunner().invoke(cli.app, ["explain", *map(str, arguments)])


def test_no_output_names_the_patient(tmp_path):
    source = _dicom(
        tmp_path / "scan.dcm", np.random.default_rng(0).integers(0, 255, (2, 64, 64), np.uint8)
    )
    out = tmp_path / "out"
    model = ["--model", "efficientnet-lite0", "--weights", "none", "--clusters", 4, "--out", out]
    result = _explain(source, *model, "--frame", 2, "--html", "--dicom")
    assert result.exit_code == 0, result.output
    names = {path.name for path in out.iterdir()}
    assert {"scan.html", "scan.json", "scan.overlay.dcm", "scan.overlay.png"} <= names
    record = json.loads((out / "scan.json").read_text())
    assert record["frame"] == {"number": 2, "of": 2}
    assert "; frame 2 of 2, see " in result.stdout
    for path in out.iterdir():
        content = path.read_bytes()
        for word in (b"Doe^", b"Secret", b"-SECRET", b"19700101", b"20200229"):
            assert word not in content, path.name
    for word in ("Doe", "-SECRET"):
        assert word not in result.output
    result = _explain(source, *model, "--dicom", "--dicom-identifiers")
    assert result.exit_code == 0, result.output
    assert str(pydicom.dcmread(out / "scan.overlay.dcm").PatientName) == PATIENT


def test_identifiers_are_refused_where_there_are_none(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    result = _explain(tmp_path / "a.png", "--model", "resnet18", "--dicom", "--dicom-identifiers")
    assert result.exit_code == 2
    assert "must have DICOM files as images; got" in result.output


@pytest.mark.parametrize("kind", ["npy", "nii"])
def test_a_volume_through_a_network_of_three_dimensions(tmp_path, kind, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "made_here.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef volumes():\n"
        "    model = nn.Sequential(nn.Conv3d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1),\n"
        "                          nn.Flatten(), nn.Linear(6, 2))\n"
        "    return model, lambda volume: torch.from_numpy(volume)[None]\n"
    )
    volume = np.random.default_rng(0).random((7, 8, 9)).astype(np.float32)
    path = tmp_path / f"scan.{kind}"
    if kind == "npy":
        np.save(path, volume)
    else:
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)
    out = tmp_path / "out"
    result = _explain(
        path,
        *("--model", "made_here:volumes", "--layer", "1", "--clusters", 3, "--html", "--out", out),
    )
    assert result.exit_code == 0, result.output
    heat = np.load(out / "scan.heatmap.npy")
    assert heat.shape == ((7, 8, 9) if kind == "npy" else (9, 8, 7))
    assert 'id="slice"' in (out / "scan.html").read_text(encoding="utf-8")


def test_one_that_fails_loses_no_other(tmp_path):
    good = _dicom(tmp_path / "good.dcm", RAMP)
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(b"nothing")
    out = tmp_path / "out"
    model = ["--model", "efficientnet-lite0", "--weights", "none", "--clusters", 4, "--out", out]
    result = _explain(bad, good, *model)
    assert result.exit_code == 2
    assert "bad.dcm" in result.output
    assert (out / "good.json").is_file()


# The modality transformation


def _table(first, values, depth, vr="OW"):
    table = pydicom.Dataset()
    table.add_new(0x00283002, "US" if first >= 0 else "SS", [len(values), first, depth])
    words = np.asarray(values, np.uint16)
    table.add_new(0x00283006, vr, words.tobytes() if vr == "OW" else words.tolist())
    return table


def _turned(bits):
    """A ramp from 0 to the largest value, whose order a negative slope turns round."""
    top = 2**bits - 1
    ramp = np.linspace(0, top, 16).astype(np.uint8 if bits == 8 else np.uint16)
    return np.tile(ramp, (4, 1)), {"RescaleSlope": "-1", "RescaleIntercept": str(top)}


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_negative_slope_turns_the_picture_round_whatever_the_bits(tmp_path, bits, photometric):
    pixels, tags = _turned(bits)
    found = _gray(_dicom(tmp_path / "a.dcm", pixels, photometric, bits=bits, **tags))
    ends = [255, 0] if photometric == "MONOCHROME2" else [0, 255]
    assert found[0, [0, -1]].tolist() == ends


@pytest.mark.parametrize(("slope", "intercept"), [("2", "-100"), ("1", "0"), ("0.5", "7")])
def test_a_rescaling_upwards_leaves_bytes_as_they_are(tmp_path, slope, intercept):
    tags = {"RescaleSlope": slope, "RescaleIntercept": intercept}
    np.testing.assert_array_equal(_gray(_dicom(tmp_path / "a.dcm", RAMP, **tags)), RAMP)


def test_a_window_is_in_the_units_of_the_rescaling_whatever_the_bits(tmp_path):
    tags = {"RescaleSlope": "-1", "RescaleIntercept": "255"}
    tags |= {"WindowCenter": "63.5", "WindowWidth": "128"}  # of 255 - value, from 0 to 127
    found = _gray(_dicom(tmp_path / "a.dcm", RAMP, **tags))
    assert (found.flat[128], found.flat[255]) == (255, 1)
    assert (found.flat[:128] == 255).all()


@pytest.mark.parametrize("vr", ["OW", "US"])
@pytest.mark.parametrize("depth", [8, 16])
def test_a_modality_table_applies_to_bytes(tmp_path, vr, depth):
    values = (2**depth - 1) // 255 * (255 - np.arange(256))
    path = _dicom(tmp_path / "a.dcm", RAMP, ModalityLUTSequence=[_table(0, values, depth, vr)])
    np.testing.assert_array_equal(_gray(path), 255 - RAMP)


def test_a_modality_table_that_begins_below_zero(tmp_path):
    pixels = np.array([[-9, -5, 0, 5, 9]], np.int16)
    table = _table(-5, np.arange(11)[::-1], 16)
    path = _dicom(tmp_path / "a.dcm", pixels, bits=16, signed=True, ModalityLUTSequence=[table])
    np.testing.assert_array_equal(_gray(path), [[255, 255, 128, 0, 0]])


def test_a_voi_table_comes_after_the_rescaling(tmp_path):
    tags = {"RescaleSlope": "-1", "RescaleIntercept": "255"}
    path = _dicom(tmp_path / "a.dcm", RAMP, VOILUTSequence=[_table(0, np.arange(256), 8)], **tags)
    np.testing.assert_array_equal(_gray(path), 255 - RAMP)


def test_a_voi_table_that_begins_below_zero_is_signed_by_what_it_is_given(tmp_path):
    """It says -2 in two bytes, which pydicom reads as 65534 since the pixels have no sign."""
    table = _table(2**16 - 2, [0, 85, 170, 255], 8)
    tags = {"RescaleSlope": "1", "RescaleIntercept": "-3", "VOILUTSequence": [table]}
    path = _dicom(tmp_path / "a.dcm", np.arange(6, dtype=np.uint8)[None], **tags)
    np.testing.assert_array_equal(_gray(path), [[0, 0, 85, 170, 255, 255]])


def test_bits_in_higher_places_are_refused(tmp_path):
    pixels = np.array([[0, 1000, 2048, 4095]], np.uint16) << 4
    path = _dicom(tmp_path / "a.dcm", pixels, bits=12, HighBit=15)
    with pytest.raises(ValueError, match=r"bits of its values in the lowest places.*HighBit"):
        read_dicom(path)


def test_each_frame_has_its_own_transformations(tmp_path):
    def group(slope, intercept, window=None):
        group, values = pydicom.Dataset(), pydicom.Dataset()
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = slope, intercept, "US"
        group.PixelValueTransformationSequence = [values]
        if window:
            voi = pydicom.Dataset()
            voi.WindowCenter, voi.WindowWidth = window
            group.FrameVOILUTSequence = [voi]
        return group

    path = _dicom(
        tmp_path / "a.dcm",
        np.stack([RAMP] * 3),
        # what the file says of all frames, and each frame's own replaces
        ModalityLUTSequence=[_table(0, 255 - np.arange(256), 8)],
        WindowCenter="10",
        WindowWidth="2",
        PerFrameFunctionalGroupsSequence=[
            group("1", "0", ("127.5", "256")),
            group("-1", "255", ("127.5", "256")),
            group("-1", "255"),
        ],
    )
    np.testing.assert_allclose(_gray(path, 1).astype(int), RAMP, atol=1)
    np.testing.assert_allclose(_gray(path, 2).astype(int), 255 - RAMP.astype(int), atol=1)
    assert (_gray(path, 3) == np.where(RAMP < 245, 255, 0))[RAMP != 245].all()


def test_padding_may_be_a_range(tmp_path):
    pixels = np.array([[-2000, -1500, 100], [300, 400, 500]], dtype=np.int16)
    tags = {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1500}
    path = _dicom(tmp_path / "a.dcm", pixels, bits=16, signed=True, **tags)
    np.testing.assert_array_equal(_gray(path), [[0, 0, 0], [128, 191, 255]])


def test_a_rescaling_by_zero_is_refused(tmp_path):
    path = _dicom(tmp_path / "a.dcm", RAMP, RescaleSlope="0", RescaleIntercept="5")
    with pytest.raises(ValueError, match="cannot be decoded"):
        read_dicom(path)


# Tables, by hand: the entry of each value


@pytest.mark.parametrize("packed", [False, True])
def test_entries_of_eight_bits_for_deep_values(tmp_path, packed):
    """3095 is the last place of the table, and not the 23rd, which is that modulo 256."""
    pixels = np.array([[0, 1000, 1100, 4095]], np.uint16)
    table = _table(1000, np.arange(256), 8)
    if packed:
        table["LUTData"].value = np.arange(256, dtype=np.uint8).tobytes()
    found = _gray(_dicom(tmp_path / "a.dcm", pixels, bits=12, VOILUTSequence=[table]))
    assert found.tolist() == [[0, 0, 100, 255]]


def test_entries_of_eight_bits_for_rescaled_values(tmp_path):
    tags = {"RescaleSlope": "16", "RescaleIntercept": "-1024"}
    table = _table(-1024, np.arange(4096) // 16, 8)
    path = _dicom(tmp_path / "a.dcm", RAMP, VOILUTSequence=[table], **tags)
    np.testing.assert_array_equal(_gray(path), RAMP)


def test_a_table_of_all_values_says_that_it_has_none(tmp_path):
    table = _table(0, [0], 16)
    table.LUTDescriptor = [0, 0, 16]
    table.LUTData = np.arange(65536, dtype=np.uint16)[::-1].tobytes()
    pixels = np.array([[0, 32768, 65535]], np.uint16)
    path = _dicom(tmp_path / "a.dcm", pixels, bits=16, VOILUTSequence=[table])
    assert _gray(path).tolist() == [[255, 127, 0]]


def test_a_modality_table_of_twelve_bits(tmp_path):
    values = 4095 - 8 * np.arange(256)  # from 4095 to 2055
    path = _dicom(tmp_path / "a.dcm", RAMP, ModalityLUTSequence=[_table(0, values, 12)])
    np.testing.assert_allclose(_gray(path), values.reshape(16, 16) / 4095 * 255, atol=0.51)


def test_an_odd_number_of_palette_entries_is_padded(tmp_path):
    tables = {}
    for number, name in enumerate(("Red", "Green", "Blue")):
        entries = np.zeros(4, np.uint8)  # the fourth makes the length even
        entries[number] = 255
        tables[f"{name}PaletteColorLookupTableDescriptor"] = [3, 0, 8]
        tables[f"{name}PaletteColorLookupTableData"] = entries.tobytes()
    pixels = np.array([[0, 1, 2]], np.uint8)
    image, _ = read_dicom(_dicom(tmp_path / "a.dcm", pixels, "PALETTE COLOR", **tables))
    assert np.asarray(image)[0].tolist() == (255 * np.eye(3)).tolist()


@pytest.mark.parametrize(("name", "kind"), [("Float", np.float32), ("DoubleFloat", np.float64)])
@pytest.mark.parametrize("window", [None, ("1", "2")])
def test_pixels_may_be_floats(tmp_path, name, kind, window):
    values = np.array([[-1, 0, 0.5], [1, 2, 3]], kind)
    data = pydicom.dcmread(_dicom(tmp_path / "a.dcm", np.zeros((2, 3), np.uint8)))
    for absent in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(data, absent)
    data.BitsAllocated = 8 * values.itemsize
    setattr(data, f"{name}PixelData", values.tobytes())
    if window:
        data.WindowCenter, data.WindowWidth = window
        data.VOILUTFunction = "LINEAR_EXACT"
    data.save_as(tmp_path / "a.dcm")
    expected = np.clip(values / 2, 0, 1) if window else (values + 1) / 4
    np.testing.assert_allclose(_gray(tmp_path / "a.dcm"), 255 * expected, atol=0.51)


def test_a_file_that_does_not_say_what_its_values_mean(tmp_path):
    path = _dicom(tmp_path / "a.dcm", RAMP, "")
    with pytest.raises(ValueError, match=r"has another, or none\. Add the right one to the file"):
        read_dicom(path)
