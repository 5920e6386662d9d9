from .columns import Columns as Columns, Lists as Lists, Text as Text
from .schema import Schema as Schema
from .fields import Field as Field
from .ops.base import Operation as Operation
from .ops.encode import (
    FillMissing as FillMissing,
    Categorify as Categorify,
    HashBucket as HashBucket,
    Bucketize as Bucketize,
)
from .ops.scale import LogOp as LogOp, Clip as Clip, Normalize as Normalize, MinMax as MinMax
from .ops.target import TargetEncoding as TargetEncoding
from .ops.join import JoinExternal as JoinExternal, JoinGroupby as JoinGroupby
from .ops.sequences import ListPad as ListPad, DateParts as DateParts
from .ops.custom import Lambda as Lambda
from .table import FeatureTable as FeatureTable
from .features import Features as Features
