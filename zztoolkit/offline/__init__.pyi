from .job import run as run, RunResult as RunResult
from .results import read as read, rejected as rejected, drift as drift, top_errors as top_errors
