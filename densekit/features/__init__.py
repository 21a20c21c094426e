"""The feature store: export, resume, verify; ``FeatureStore`` and ``FeatureRows`` read it."""

from densekit.data.feature_store import FeatureRows as FeatureRows
from densekit.data.feature_store import FeatureStore as FeatureStore
