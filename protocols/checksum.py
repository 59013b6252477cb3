"""CRC-32 as of zlib and IEEE 802.3: zlib-ng's where it is installed, which is twenty times as fast on large blocks."""

try:
    from zlib_ng.zlib_ng import crc32
except ImportError:
    from zlib import crc32

__all__ = ["crc32"]
