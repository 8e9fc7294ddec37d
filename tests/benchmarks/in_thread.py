"""Runs contenders in threads of this process: importing torch and diffusers in a process of its own takes 8 s each."""

from concurrent.futures import ThreadPoolExecutor

from benchmarks.contender import run_job
from benchmarks.contender_processes import SoFar
from benchmarks.results import ContenderReport
from benchmarks.workload import Job


def run_in_thread(job: Job, _limit_s: float, so_far: SoFar) -> ContenderReport:
    """As `run_in_process`. A thread, because the one that opens the device keeps its number of threads and no grad."""
    with ThreadPoolExecutor(1) as one:
        return one.submit(run_job, job, so_far).result()
