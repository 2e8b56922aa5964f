"""Where the client keeps user states: memory, and Redis over its wire protocol."""

import logging
import socketserver
import threading
import time

import ml_dtypes
import numpy as np
import pytest

from serving.client import LruUserStateCache, UserStateKey
from serving.client.redis_user_state_cache import PAUSE, RedisUserStateCache

KEY = UserStateKey("m", 3, "u1", "7")


def user_state(size=10, fill=1.0):
    return {"cache_user": np.full((1, size), fill, np.float32)}


def key(n):
    return KEY._replace(user=f"u{n}")


# === Memory ===


def test_what_was_used_last_stays_within_the_bytes():
    cache = LruUserStateCache(max_bytes=120)
    for n in range(3):
        cache.put(key(n), user_state())
    assert cache.get(key(0)) is not None
    cache.put(key(3), user_state())
    assert cache.get(key(1)) is None, "used the longest ago"
    assert [n for n in range(4) if cache.get(key(n)) is not None] == [0, 2, 3]
    assert (len(cache), cache.bytes, cache.evictions, cache.hits, cache.misses) == (3, 120, 1, 4, 2)


def test_a_user_state_above_the_budget_is_not_kept_and_evicts_none():
    cache = LruUserStateCache(max_bytes=120)
    cache.put(key(0), user_state())
    cache.put(key(1), user_state(31))
    assert cache.get(key(0)) is not None and cache.get(key(1)) is None and cache.evictions == 0


def test_user_states_are_forgotten_after_their_time():
    now = [0.0]
    cache = LruUserStateCache(ttl=10, timer=lambda: now[0])
    cache.put(KEY, user_state())
    now[0] = 9.9
    assert cache.get(KEY) is not None
    now[0] = 10.1
    assert cache.get(KEY) is None
    assert (cache.bytes, cache.evictions) == (0, 0)


@pytest.mark.parametrize("field", KEY._fields)
def test_every_part_of_the_key_counts(field):
    cache = LruUserStateCache()
    cache.put(KEY, user_state())
    assert cache.get(KEY._replace(**{field: 4 if field == "version" else "other"})) is None


def test_threads_share_it():
    cache = LruUserStateCache(max_bytes=40 * 20)

    def work(seed):
        random = np.random.default_rng(seed)
        for n in random.integers(0, 60, 2000).tolist():
            found = cache.get(key(n))
            if found is None:
                cache.put(key(n), user_state(fill=n))
            else:
                assert found["cache_user"][0, 0] == n

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.hits + cache.misses == 8000 and cache.bytes <= 800


# === Redis ===


class Resp(socketserver.StreamRequestHandler):
    """As much of Redis as GET and SET with PX take."""

    def handle(self):
        while line := self.rfile.readline():
            words = []
            for _ in range(int(line[1:])):
                size = int(self.rfile.readline()[1:])
                words.append(self.rfile.read(size + 2)[:-2])
            self.server.commands.append(words[0])
            self.wfile.write(self.answer(*words))

    def answer(self, command, *words):
        kept = self.server.kept
        if command == b"GET":
            value, end = kept.get(words[0], (None, 0))
            return b"$-1\r\n" if value is None or time.monotonic() > end else b"$%d\r\n%s\r\n" % (len(value), value)
        if command == b"SET":
            assert words[2] == b"PX"
            kept[words[0]] = (words[1], time.monotonic() + int(words[3]) / 1000)
            return b"+OK\r\n"
        return b"-ERR unknown command\r\n"  # CLIENT SETINFO, which clients do without


class RespServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True

    def __init__(self, address, kept):
        super().__init__(address, Resp)
        self.kept, self.commands = kept, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def stop(self):
        self.shutdown()
        self.server_close()


@pytest.fixture
def redis_server():
    server = RespServer(("127.0.0.1", 0), {})
    yield server
    server.stop()


def redis_cache(server, **arguments):
    return RedisUserStateCache(f"redis://127.0.0.1:{server.server_address[1]}/0", timeout=5, **arguments)


def test_redis_gives_back_what_it_got(redis_server):
    cache = redis_cache(redis_server, prefix="a")
    given = {
        "cache_user": np.arange(6, dtype=np.float32).reshape(1, 6),
        "cache_half": np.array([[1.5]], ml_dtypes.bfloat16),
        "cache_mask": np.array([[True, False]]),
        "cache_none": np.zeros((1, 0, 4), np.float16),
    }
    assert cache.get(KEY) is None
    cache.put(KEY, given)
    found = cache.get(KEY)
    assert list(found) == list(given)
    for name, array in given.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert redis_cache(redis_server, prefix="b").get(KEY) is None
    assert cache.get(KEY._replace(version=4)) is None
    assert (cache.hits, cache.misses, cache.failures) == (1, 2, 0)


def test_redis_forgets(redis_server):
    cache = redis_cache(redis_server, ttl=0.001)
    cache.put(KEY, user_state())
    time.sleep(0.01)
    assert cache.get(KEY) is None


@pytest.mark.parametrize(
    "broken", [b"", b"no JSON\n", b'[["cache_user", "float32", [1, 6]]]\nshort', b'[["x", "y", [1]]]\n']
)
def test_what_redis_holds_may_be_broken(redis_server, broken):
    cache = redis_cache(redis_server)
    cache.put(KEY, user_state())
    (name,) = redis_server.kept
    redis_server.kept[name] = (broken, time.monotonic() + 60)
    assert cache.get(KEY) is None
    cache.put(KEY, user_state())
    assert cache.get(KEY) is not None


def test_redis_may_go_and_come_back(redis_server, caplog):
    caplog.set_level(logging.WARNING)
    cache = redis_cache(redis_server)
    cache.put(KEY, user_state())
    redis_server.stop()
    cache._redis.close()  # a thread of the stand-in outlives it
    for _ in range(3):
        assert cache.get(KEY) is None
        cache.put(KEY, user_state())
    assert [record.message for record in caplog.records if "Redis fails" in record.message] == [caplog.messages[0]]
    assert cache.failures == 1, "left alone after the first"
    back = RespServer(redis_server.server_address, redis_server.kept)
    try:
        cache._away_until -= PAUSE
        assert cache.get(KEY) is not None
        assert "Redis is back." in caplog.messages
    finally:
        back.stop()
