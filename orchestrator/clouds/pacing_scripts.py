"""The limiter's Lua scripts. Times are microseconds of Redis' own clock, rates calls per second.

KEYS[1] is a hash: rate, tat (the next free slot), epoch (count of cuts), blocked (nothing before), climbed (when the
rate was last brought up to date), last (the last "slow down"). KEYS[2] counts slots by second.
ARGV begins with ceiling, and the rate and epoch to begin with where Redis knows none, and climb (of the ceiling, per
second). Numbers go back as text, Redis' time first: Lua's would lose their fractions.
"""

_PRELUDE = """
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local function text(x) return string.format('%.6f', x) end
local h = redis.call('HMGET', KEYS[1], 'rate', 'tat', 'epoch', 'blocked', 'climbed', 'last')
local tat, epoch = tonumber(h[2] or 0) or 0, tonumber(h[3] or ARGV[3]) or 0
local blocked, climbed, last = tonumber(h[4] or 0) or 0, tonumber(h[5] or now) or now, tonumber(h[6] or 0) or 0
-- A clock that went back (another server took over) must not stop everybody until it has caught up.
if blocked > now + 3600000000 then blocked = now end
if climbed > now + 3600000000 then climbed = now end
local ceiling, climb = tonumber(ARGV[1]), tonumber(ARGV[4])
local function climbing()
  local rate = tonumber(h[1] or ARGV[2])
  rate = rate + ceiling * climb * math.max(0, now - climbed) / 1000000
  return math.min(rate, ceiling)
end
local function keep(...)
  redis.call('HSET', KEYS[1], ...)
  redis.call('EXPIRE', KEYS[1], 604800)
end
"""

# ARGV[5…]: n, not_before, within
RESERVE = (
    _PRELUDE
    + """
local n, rate = tonumber(ARGV[5]), climbing()
local interval = 1000000 / rate
if tat > math.max(now, blocked) + math.max(120000000, 1000 * interval) then tat = now end
local first = math.max(now + tonumber(ARGV[6]), tat, blocked)
local last_slot = now + tonumber(ARGV[7])
local granted = 0
if first <= last_slot then granted = math.min(n, math.floor((last_slot - first) / interval) + 1) end
if granted > 0 then tat = first + granted * interval end
climbed = math.max(now, climbed)
keep('rate', text(rate), 'tat', text(tat), 'epoch', epoch, 'blocked', text(blocked), 'climbed', text(climbed))
local per_second = {}
for i = 0, granted - 1 do
  local second = math.floor((first + i * interval) / 1000000)
  per_second[second] = (per_second[second] or 0) + 1
end
for second, count in pairs(per_second) do redis.call('HINCRBY', KEYS[2], string.format('%d', second), count) end
if granted > 0 then
  for _, second in ipairs(redis.call('HKEYS', KEYS[2])) do
    if tonumber(second) < t[1] - 10 then redis.call('HDEL', KEYS[2], second) end
  end
  redis.call('EXPIRE', KEYS[2], 3600)
end
return {text(now), text(first), text(interval), granted, text(rate), epoch, text(blocked)}
"""
)

# ARGV[5…]: epoch of the permit, block, cut, floor (of the ceiling)
THROTTLED = (
    _PRELUDE
    + """
local rate = climbing()
if tonumber(ARGV[5]) >= epoch then
  rate = math.max(rate * tonumber(ARGV[7]), ceiling * tonumber(ARGV[8]))
  epoch = epoch + 1
end
blocked = math.max(blocked, now + tonumber(ARGV[6]))
keep('rate', text(rate), 'epoch', epoch, 'blocked', text(blocked), 'climbed', text(math.max(blocked, climbed)),
  'last', text(now), 'tat', text(math.max(tat, blocked)))
return {text(now), text(rate), epoch, text(blocked)}
"""
)

STATE = (
    _PRELUDE
    + """
local rate = climbing()
local used = 0
for i = 1, 5 do
  used = used + (tonumber(redis.call('HGET', KEYS[2], string.format('%d', t[1] - i)) or 0) or 0)
end
return {text(now), text(rate), epoch, text(blocked), text(last), used, text(now)}
"""
)
