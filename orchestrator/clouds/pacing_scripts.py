"""The limiter's Lua scripts. Times are microseconds of Redis' own clock, rates calls per second.

KEYS[1] is a hash: rate, tat (the next free slot), epoch (count of cuts), blocked (nothing before), climbed (when the
rate was last brought up to date), last (the last "slow down"), cap (what the cloud said it allows) and capped (until
when that counts), calm and shares (until when the row goes at one share of so many, see below), seen (the last write).
KEYS[2] counts slots by second. KEYS[3] is a sorted set: who reserved of late.

ARGV begins with ceiling, climb (of the top, per second), ahead (no slot is further from now than that when it is
handed out), and then with what the caller knows, for a Redis that has no memory of the key: rate, epoch, window (no
slot before that from now), the rest of the block, cap and the rest of its time; how many users it knew, after how long
without a write they may be going on by themselves (0: they may, since the caller did), and for how long.

Every answer begins with now, rate, epoch, blocked, cap, capped. Numbers go back as text: Lua's would lose their
fractions.
"""

_PRELUDE = """
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local arg = {}
for i = 1, #ARGV do arg[i] = tonumber(ARGV[i]) end
local ceiling, climb, ahead = arg[1], arg[2], arg[3]
local function text(x) return string.format('%.6f', x) end
local function rates(x) return string.format('%.12g', x) end
local h = redis.call('HMGET', KEYS[1], 'rate', 'tat', 'epoch', 'blocked', 'climbed', 'last', 'cap', 'capped',
  'calm', 'shares', 'seen')
local function kept(i, otherwise)
  local x = tonumber(h[i] or otherwise)
  if not x or x ~= x then return otherwise end
  return x
end
local rate, tat, epoch = kept(1, arg[4]), kept(2, now + arg[6]), kept(3, arg[5])
local blocked, climbed = kept(4, arg[7] > 0 and now + arg[7] or 0), kept(5, now)
local last = kept(6, arg[7] > 0 and now or 0)
local cap, capped, calm, shares = kept(7, arg[8]), kept(8, now + arg[9]), kept(9, 0), kept(10, 1)
if rate <= 0 then rate = arg[4] end
-- Another server took over, and its clock is behind: what was left at the last write is left now.
local back = kept(11, now) - now
if back > 50000 then
  tat, blocked, climbed, last = tat - back, blocked - back, climbed - back, last - back
  capped, calm = capped - back, calm - back
end
-- No time can be further ahead than this, whatever happened to the clock: nobody waits until it has caught up.
if blocked > math.min(now, last) + 3600000000 then blocked = now end
if capped > now + 3600000000 then capped = now end
climbed = math.min(climbed, math.max(now, blocked))
local function users()
  return math.max(redis.call('ZCARD', KEYS[3]), now < calm and shares or 1)
end
-- While some may still go on by themselves at a share each, the row is one more of them.
if math.abs(now - kept(11, 0)) >= arg[11] then
  local known = math.max(users(), arg[10])
  if known > 1 then calm, shares = now + arg[12], known end
end
local function top()
  if cap > 0 and now < capped then return math.min(ceiling, cap) end
  return ceiling
end
rate = math.min(rate + top() * climb * math.max(0, now - climbed) / 1000000, top())
local function interval()
  return 1000000 / rate * (now < calm and shares or 1)
end
tat = math.min(tat, math.max(now + ahead, blocked) + interval())
local function keep()
  redis.call('HSET', KEYS[1], 'rate', rates(rate), 'tat', text(tat), 'epoch', epoch, 'blocked', text(blocked),
    'climbed', text(math.max(now, climbed)), 'last', text(last), 'cap', rates(cap), 'capped', text(capped),
    'calm', text(calm), 'shares', shares, 'seen', text(now))
  redis.call('EXPIRE', KEYS[1], 604800)
end
local function answer(...)
  return {text(now), rates(rate), epoch, text(blocked), rates(cap), text(capped), ...}
end
"""

# ARGV[13…]: n, not_before, within, push (nobody's next slot is before that from now), own name.
RESERVE = (
    _PRELUDE
    + """
local n, last_slot = arg[13], now + math.min(arg[15], ahead)
local step = interval()
tat = math.max(tat, now + arg[16])
local first = math.max(now + arg[14], tat, blocked)
local granted = 0
if first <= last_slot then granted = math.min(n, math.floor((last_slot - first) / step) + 1) end
if granted > 0 then tat = first + granted * step end
keep()
redis.call('ZADD', KEYS[3], string.format('%.0f', now), ARGV[17])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', string.format('%.0f', now - 30000000))
redis.call('ZREMRANGEBYSCORE', KEYS[3], string.format('%.0f', now + 1), '+inf')
redis.call('EXPIRE', KEYS[3], 3600)
local per_second = {}
for i = 0, granted - 1 do
  local second = math.floor((first + i * step) / 1000000)
  per_second[second] = (per_second[second] or 0) + 1
end
for second, count in pairs(per_second) do redis.call('HINCRBY', KEYS[2], string.format('%d', second), count) end
if granted > 0 then
  for _, second in ipairs(redis.call('HKEYS', KEYS[2])) do
    if math.abs(tonumber(second) - t[1]) > 10 then redis.call('HDEL', KEYS[2], second) end
  end
  redis.call('EXPIRE', KEYS[2], 3600)
end
return answer(text(first), text(step), granted, users())
"""
)

# ARGV[13…]: epoch of the permit, block, cut, floor (of the top), most (the rate's limit), allowed (the cap; 0: none
# was said), for how long it counts.
THROTTLED = (
    _PRELUDE
    + """
local allowed = arg[18]
if allowed > 0 then cap, capped = allowed, now + arg[19] end
if allowed > 0 and rate > allowed then
  rate = allowed
elseif arg[13] >= epoch then
  rate = math.max(rate * arg[15], top() * arg[16])
end
rate = math.min(rate, arg[17])
if arg[13] >= epoch then epoch = epoch + 1 end
last, blocked = now, math.max(blocked, now + arg[14])
climbed, tat = math.max(blocked, climbed), math.max(tat, blocked)
keep()
return answer()
"""
)

# Writes too, so that a Redis that takes no writes counts as away here as well.
STATE = (
    _PRELUDE
    + """
local used = 0
for i = 1, 5 do
  used = used + (tonumber(redis.call('HGET', KEYS[2], string.format('%d', t[1] - i)) or 0) or 0)
end
keep()
return answer(text(last), used)
"""
)
