"""The probe of Redis: a few hundred commands whose answers are the same in every run of one server."""

from collections.abc import Iterator

_LINES = """
SET k hello|GET k|GETRANGE k 1 3|SETRANGE k 2 LLO|STRLEN k|APPEND k world|GETSET k new|GETDEL k|GET k|SETNX k one
SETNX k two|GETEX k|SET k v NX|SET k v XX GET|SET k v BAD|SET|MSET a 1 b 2 c 3|MGET a b c nope|MSET a|MSETNX a 9 z 9
MSETNX y 1 z 2|INCR a|INCRBY a 41|DECR a|DECRBY a 7|INCRBYFLOAT a 1.5|INCR k|INCRBY a x|SET big 9223372036854775807
INCR big|SUBSTR k 0 -1|LCS a b|SET l1 ohmytext|SET l2 mynewtext|LCS l1 l2|LCS l1 l2 LEN|LCS l1 l2 IDX MINMATCHLEN 2
SETRANGE k 600000000 x|SETEX t 1000 v|SETEX t 0 v|PSETEX t 1000000 v|TYPE t|PERSIST t|TTL t|TTL nope|STRLEN nope
RPUSH l a b c d e|LPUSH l z|LRANGE l 0 -1|LLEN l|LINDEX l 2|LINDEX l -1|LINDEX l 99|LSET l 1 A|LSET l 99 x
LSET nope 1 x|LINSERT l BEFORE b before|LINSERT l AFTER b after|LINSERT l MID b x|LINSERT l AFTER nope x|LREM l 0 b
LREM l -1 c|LPOS l d|LPOS l d RANK -1|LPOS l d COUNT 0|LPOS l d RANK 0|LTRIM l 0 3|LRANGE l 0 -1|LPOP l|RPOP l
LPOP l 2|LPOP l 0|RPOP nope|RPUSH m 1 2 3 4|LMOVE m n LEFT RIGHT|RPOPLPUSH m n|LMOVE m n UP DOWN|LRANGE n 0 -1
LMPOP 2 x n LEFT COUNT 2|LMPOP 0 n LEFT|LPUSHX nope a|RPUSHX n q|LRANGE n 0 -1|BLPOP n 1|BRPOP m 1|LPUSH k x|LLEN k
OBJECT ENCODING n|RPUSH n x|OBJECT ENCODING n|SADD s 1 2 3|SADD s 3 4|SCARD s|SISMEMBER s 2|SISMEMBER s 9
SMISMEMBER s 1 9 3|SMEMBERS s|SREM s 1 9|SMOVE s u 2|SMOVE s u 9|SADD v 3 4 5 6|SINTER s v|SUNION s v|SDIFF s v
SDIFF v s|SINTERSTORE w s v|SUNIONSTORE w s v|SDIFFSTORE w v s|SMEMBERS w|SINTERCARD 2 s v|SINTERCARD 2 s v LIMIT 1
SINTERCARD 0 s|SPOP nope|SPOP s 100|SRANDMEMBER nope|SADD k x|OBJECT ENCODING v|SADD v x|SISMEMBER v x
OBJECT ENCODING v|SCARD v|SREM v 3 4 5 6 x|EXISTS v|SMEMBERS nope|SINTER v nope|SADD v 1|HSET h a 1 b 2 c 3|HGET h a
HGET h nope|HMGET h a b nope|HSETNX h a 9|HSETNX h d 4|HGETALL h|HKEYS h|HVALS h|HLEN h|HSTRLEN h a|HEXISTS h a
HEXISTS h z|HINCRBY h a 5|HINCRBY h x 5|HINCRBYFLOAT h a 1.25|HINCRBY h a x|HDEL h b c nope|HSET h a|HMSET h p 1 q 2
HGETALL h|HRANDFIELD nope|HSCAN h 0|HSCAN h 0 MATCH p* COUNT 5|OBJECT ENCODING h|HGET k a|HMSET h x
HSET h long aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa|OBJECT ENCODING h
HGET h long|ZADD z 1 a 2 b 3 c 4 d 5 e|ZADD z NX 9 a|ZADD z XX CH 7 a|ZADD z GT 1 a|ZADD z LT 1 a|ZADD z INCR 2 b
ZADD z x a|ZADD z NX XX 1 a|ZCARD z|ZSCORE z a|ZSCORE z nope|ZMSCORE z a nope b|ZRANK z c|ZREVRANK z c|ZRANK z nope
ZRANGE z 0 -1|ZRANGE z 0 -1 WITHSCORES|ZREVRANGE z 0 1|ZRANGE z 1 3 BYSCORE|ZRANGE z 3 1 BYSCORE REV
ZRANGE z (1 +inf BYSCORE LIMIT 1 2|ZRANGE z - + BYLEX|ZRANGEBYSCORE z 2 4 WITHSCORES|ZRANGEBYSCORE z (2 4
ZREVRANGEBYSCORE z 4 2|ZCOUNT z 2 4|ZCOUNT z (2 +inf|ZLEXCOUNT z [a [c|ZINCRBY z 10 c|ZRANGEBYLEX z [a (d
ZREVRANGEBYLEX z + -|ZPOPMIN z|ZPOPMAX z 2|ZPOPMIN z 0|ZREM z b nope|ZRANGE z 0 -1 WITHSCORES|ZADD x 1 a 2 b 3 c
ZADD y 10 b 20 c 30 d|ZADD yy 10 b 20 c 30 d|ZUNION 2 x yy WITHSCORES|ZINTER 2 x yy WITHSCORES|ZDIFF 2 x yy
ZUNIONSTORE o 2 x yy WEIGHTS 2 3 AGGREGATE MAX|ZRANGE o 0 -1 WITHSCORES|ZINTERSTORE o 2 x yy AGGREGATE MIN
ZDIFFSTORE o 2 x yy|ZINTERCARD 2 x yy|ZINTERCARD 2 x yy LIMIT 1|ZRANGESTORE o x 0 1|ZRANGE o 0 -1
ZMPOP 1 x MIN COUNT 2|ZMPOP 1 x MID|ZRANDMEMBER nope|ZREMRANGEBYRANK yy 0 0|ZREMRANGEBYSCORE yy 20 20
ZREMRANGEBYLEX yy - +|ZSCAN o 0|ZADD k 1 a|ZRANGE z 0 x|ZADD o nan a|BZPOPMIN o 1
ZADD o 5 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa|OBJECT ENCODING o
ZADD o 6 b 1 c|ZRANK o b|ZRANGE o 0 -1 WITHSCORES|ZRANGEBYSCORE o 1 5|ZREM o b|ZCOUNT o 1 5|ZPOPMIN o 2|ZCARD o
EXISTS o|SETBIT bits 7 1|SETBIT bits 100 1|GETBIT bits 7|GETBIT bits 8|BITCOUNT bits|BITCOUNT bits 0 0
BITCOUNT bits 0 20 BIT|BITPOS bits 1|BITPOS bits 0|BITPOS bits 1 2|BITPOS bits 1 2 -1 BIT|SETBIT bits x 1
SETBIT bits 1 2|SET c1 foobar|SET c2 abcdef|BITOP AND d c1 c2|GET d|BITOP OR d c1 c2|GET d|BITOP XOR d c1 c2
STRLEN d|BITOP NOT d c1|STRLEN d|BITOP NOT d c1 c2|BITFIELD f SET u8 0 200 GET u8 0|BITFIELD f INCRBY i5 100 1
BITFIELD f OVERFLOW SAT INCRBY u8 0 100|BITFIELD f OVERFLOW FAIL INCRBY u8 0 100|BITFIELD_RO f GET u8 0
BITFIELD f GET u65 0|BITFIELD f SET i8 #1 -3 GET i8 #1|BITCOUNT nope|BITPOS nope 1|BITPOS nope 0|BITCOUNT c1 1 1
BITCOUNT c1 a b|PFADD p a b c d|PFADD p a|PFCOUNT p|PFADD q c d e f|PFCOUNT p q|PFMERGE r p q|PFCOUNT r|PFADD k x
STRLEN p|PFCOUNT nope|GEOADD g 13.361389 38.115556 Palermo 15.087269 37.502669 Catania|GEODIST g Palermo Catania
GEODIST g Palermo Catania km|GEODIST g Palermo nope|GEOPOS g Palermo nope|GEOHASH g Palermo Catania
GEORADIUS g 15 37 200 km|GEORADIUS g 15 37 100 km WITHDIST
GEOSEARCH g FROMLONLAT 15 37 BYBOX 400 400 km ASC WITHCOORD WITHDIST
GEOSEARCH g FROMMEMBER Palermo BYRADIUS 200 km DESC COUNT 1|GEOADD g 200 100 bad|GEOADD g NX 1 1 Palermo
GEORADIUSBYMEMBER g Palermo 200 km|GEOSEARCHSTORE gs g FROMLONLAT 15 37 BYRADIUS 200 km|ZCARD gs
GEODIST g Palermo Catania parsec|RPUSH so 3 1 2 10|SORT so|SORT so DESC|SORT so ALPHA|SORT so LIMIT 1 2
SORT so STORE sd|LRANGE sd 0 -1|SET w_1 3|SET w_2 2|SET w_3 1|SET w_10 0|SORT so BY w_*|SORT so BY w_* GET w_* GET #
SORT so BY nosort|RPUSH st a b|SORT st|SORT st ALPHA DESC|SORT nope|SORT k|SORT_RO so|SORT so GET h->a
"""


def _commands() -> Iterator[tuple[str, ...]]:
    yield ("FLUSHALL",)
    yield from _split(_LINES)
    # Long enough for the other encodings: hash table, skip list, several quicklist nodes, dense HyperLogLog.
    for kind, key in (("RPUSH", "longl"), ("SADD", "longs"), ("PFADD", "longp")):
        for start in range(0, 1200, 200):
            yield (kind, key, *(f"member-{number}-{'x' * (number % 40)}" for number in range(start, start + 200)))
    for start in range(0, 400, 100):
        yield ("ZADD", "longz", *(w for n in range(start, start + 100) for w in (str(n * 7 % 101), f"m{n}")))
        yield ("HSET", "longh", *(w for n in range(start, start + 200) for w in (f"f{n}", str(n))))
    yield from _split(_LONG)


def _split(lines: str) -> Iterator[tuple[str, ...]]:
    for line in lines.strip().splitlines():
        yield from (tuple(command.split()) for command in line.split("|"))


_LONG = """
LLEN longl|LINDEX longl 777|LRANGE longl 500 520|LREM longl 2 member-600-|LPOS longl member-900-xxxxxxxxxxxxxxxxxxxx
LSET longl 700 new|LINSERT longl BEFORE member-800- new|LTRIM longl 100 -100|LLEN longl|LPOP longl 3|RPOP longl 3
SCARD longs|SISMEMBER longs member-40-|SMISMEMBER longs member-1-x nope|SREM longs member-40-
SINTERCARD 2 longs longs|SDIFFSTORE sd2 longs s|SCARD sd2|PFCOUNT longp|PFMERGE longp p|PFCOUNT longp|ZCARD longz
ZRANK longz m77|ZRANGE longz 100 130 WITHSCORES|ZRANGEBYSCORE longz 20 22|ZREVRANGEBYSCORE longz 22 20 LIMIT 2 3
ZCOUNT longz 10 90|ZREMRANGEBYRANK longz 10 20|ZREMRANGEBYSCORE longz 50 55|ZPOPMAX longz 4|ZUNIONSTORE u2 2 longz z
ZCARD u2|ZINTERSTORE u3 2 longz u2|ZCARD u3|ZMSCORE longz m1 m2 nope|HLEN longh|HGET longh f333
HMGET longh f1 f499 nope|HDEL longh f10 f11|HINCRBY longh f12 5|HSTRLEN longh f12|HEXISTS longh f10
SORT longl ALPHA LIMIT 0 3|DBSIZE
"""
COMMANDS = tuple(_commands())
