"""The demonstration: 23 noisy views of the CT slice that ships with pydicom, reconstructed three ways."""

from __future__ import annotations

from pathlib import Path

from pydicom.data import get_testdata_file

from scoreinv.files.reconstruction import check_writable, write_reconstruction
from scoreinv.files.scan import write_scan
from scoreinv.reconstruction import DEFAULT, reconstruct
from scoreinv.report import draw, judgement, scores, summary
from scoreinv.simulation import simulate_scan
from scoreinv.units import hu_from_mu

RIVALS = ("fbp", "fista_tv")


def demo(
    folder: Path, *, n_views: int = 23, samples: int | None = None, relative_noise: float = 0.005, seed: int = 0
) -> str:
    """Simulate, reconstruct, write `scan.h5`, `recon.h5` and `recon.png` into a folder.

    Args:
        folder: made if it does not exist.
        n_views: views over 180 degrees.
        samples: posterior draws, by default the method's own number.
        relative_noise: standard deviation of the noise, relative to the mean of the data.
        seed: of noise and draws.

    Returns:
        What was done, as a table for people.

    Raises:
        ValueError: n_views is less than 1.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / name for name in ("scan.h5", "recon.h5", "recon.png")}
    for path in paths.values():
        check_writable(path)
    image = Path(str(get_testdata_file("CT_small.dcm")))
    scan = simulate_scan(image, "parallel_beam_ct", {"n_views": n_views}, relative_noise=relative_noise, seed=seed)
    write_scan(paths["scan.h5"], scan)
    rows = []
    for method in (*RIVALS, DEFAULT):
        result = reconstruct(scan, method, samples=samples if method == DEFAULT else None, seed=seed)
        assert result.mean_hu is not None and result.truth is not None
        psnr, ssim = scores(result.mean_hu, hu_from_mu(result.truth, scan.mu_water_per_mm))
        rows.append(f"  {method:10s} {psnr:6.2f} dB   {ssim:.3f}   {result.settings['seconds']:5.1f} s")
    write_reconstruction(paths["recon.h5"], result)
    draw(paths["recon.png"], result)
    size = " x ".join(map(str, scan.problem.A.in_shape))
    return "\n".join([
        f"CT slice {image.name}, {size} pixels, {n_views} views, {100 * relative_noise:g} % noise",
        "  method        PSNR       SSIM    time     (window -1000 to 1000 HU, range 1)",
        *rows,
        summary(result),
        judgement(result),
        "wrote " + ", ".join(str(path) for path in paths.values()),
    ])  # fmt: skip
