from .profile import LoadProfile as LoadProfile
from .load import LoadGenerator as LoadGenerator
from .bottleneck import Bottleneck as Bottleneck
from .results import Benchmark as Benchmark
from .benchmarking import benchmark as benchmark
from .comparison import compare as compare, Comparison as Comparison
from .server_result import ServerComparison as ServerComparison
from .servers import compare_servers as compare_servers
from .tuning.space import Parameter as Parameter
from .tuning.result import TuneResult as TuneResult
from .tuning.tuner import tune as tune
