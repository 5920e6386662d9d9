from .job import run as run, Run as Run
from .results import read as read, refused as refused, drift as drift, reasons as reasons
