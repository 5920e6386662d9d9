from .graph import Stage as Stage
from .pipeline import LocalPipeline as LocalPipeline, Pipeline as Pipeline
