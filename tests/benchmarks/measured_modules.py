"""What the modules of SD1.5 took on a GPU that there isn't: for the reports that show it."""

from benchmarks.results import ModuleReport, ModuleTime


def module_report(*times: ModuleTime) -> ModuleReport:
    """With these times."""
    return ModuleReport(
        device="a GPU",
        dtype="float16",
        cpu_threads=8,
        matrix_tflops=790.0,
        evaluations=25,
        unet_row_flops=803_000_000_000,
        vae_decode_flops=2_515_000_000_000,
        unet_parameters=859_500_000,
        times=times,
    )
