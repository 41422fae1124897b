"""A teacher that is asked once: its answers are kept on disk."""

from stillroom.teacher_cache.cache import (
    CachedOnDisk,
    CacheOptions,
    cache_of,
    cache_options,
    check_cacheable,
    classes_kept,
    notes_of,
    told,
)

__all__ = [
    "CacheOptions",
    "CachedOnDisk",
    "cache_of",
    "cache_options",
    "check_cacheable",
    "classes_kept",
    "notes_of",
    "told",
]
