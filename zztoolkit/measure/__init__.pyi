from .profile import LoadProfile as LoadProfile
from .connections import Target as Target
from .load import LoadGenerator as LoadGenerator
from .levels import LoadLevel as LoadLevel
from .bottleneck import Bottleneck as Bottleneck
from .results import Benchmark as Benchmark
from .benchmarking import benchmark as benchmark
from .comparison import compare as compare, Comparison as Comparison
from .tuning.space import Parameter as Parameter
from .tuning.result import TuneResult as TuneResult
from .tuning.tuner import tune as tune
