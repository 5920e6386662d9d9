from .pod_config import PodConfig as PodConfig, Ports as Ports
from .pod import run_pod as run_pod
from .image import write_image_context as write_image_context
from .rendering import render as render
from .helm import Release as Release
from .checks import check as check
from .releasing import diff as diff, apply as apply
from .sizing import Assumptions as Assumptions, ReplicaProfile as ReplicaProfile, size_cluster as size_cluster
