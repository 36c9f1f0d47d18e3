-- Limits over several hosts: every step that server processes take on what they share. gateway/limits/hosts.py says what for.
--
-- KEYS[1]: the prefix of all keys. ARGV[1]: JSON [process, session, heartbeats]; then operations, JSON each:
--   ["hello", known]                                  which state is this? `known`: the one this process has worked with, or ""
--   ["join", known, permits, older]                   (again) a process that counts. `permits`: all it holds, and what it has to settle:
--                                                     [permit, tokens, hi, lo, {names}, used or -1, used hi, used lo]
--                                                     `older`: 1 where this process has seen later steps of this state than it has now
--   ["state", name]                                   an account as this process saw it last, in the next argument: for a state that was lost
--   ["reserve", permit, tokens, hi, lo, {accounts}, unsure]
--                                                     account: [name, rpm, tpm, rpd, tpd, concurrency, soft, whose, money, tokens]
--                                                     budget: [amount hi, lo, kind, end, spent hi, lo, start]; 0 = there is none
--                                                     `unsure`: 1 where `spent` may have what another process has yet to tell
--   ["settle", permit, tokens, hi, lo]
--   ["spent", name, tokens, hi, lo]                   admitted while Redis was away
--   ["leave"]
-- Answer: [answers of the operations, number of this step, name, state, name, state ...]. "join" alone: who asks is not known here.
--
-- All counts are whole numbers below 2^53. Money is (hi, lo): hi * 1e6 + lo, in 1e-12 USD. Times are microseconds of this server's clock,
-- starts and ends of windows are Unix seconds (0: for ever). A limit of -1 is none. An account is one packed string:
--   u: when it was filled last; r: left of the four rates; l: the limits they are under; g: the limits up to which they were filled when
--   those were raised; c: when l changed; n: running; qh, ql, qk: reserved; mh, ml, k: spent since ever; w: windows by kind: {end, then what
--   m or k was when it began, start}

local P, SECOND = KEYS[1], 1000000
local PERIOD = {60 * SECOND, 60 * SECOND, 86400 * SECOND, 86400 * SECOND}
local STEADY = 2 * SECOND        -- a raised limit fills its bucket up when it has been the same this long: hosts learn of it one by one
local GONE, GONE_AFTER_BREAK, LEASE = 0.8 * SECOND, 3 * SECOND, 15 * SECOND
local SWEEP, GATHER = 0.25 * SECOND, 1.5 * SECOND
local AHEAD = 60 * SECOND        -- a window that begins later than this was begun by a clock that is wrong
local MOST_LIVES_S = 366 * 86400
local STILL = 2 * SECOND         -- without any step: it was this server that was away, and nobody could show that they live
local time = redis.call('TIME')
local now = time[1] * SECOND + time[2]
local me, session, beats = unpack(cjson.decode(ARGV[1]))
local accounts, changed = {}, {}

local function sum(h, l, dh, dl)
  h, l = h + dh, l + dl
  local carry = math.floor(l / 1000000)
  return h + carry, l - carry * 1000000
end

local function above(h, l, other_h, other_l) return h > other_h or (h == other_h and l > other_l) end

local function load(name)
  local a = accounts[name]
  if a == nil then
    local stored = redis.call('GET', P .. ':account:' .. name)
    if stored then
      a = cmsgpack.unpack(stored)
    else
      a = {u = now, r = {0, 0, 0, 0}, l = {-1, -1, -1, -1}, g = {-1, -1, -1, -1}, c = now, n = 0,
           qh = 0, ql = 0, qk = 0, mh = 0, ml = 0, k = 0, w = {}}
    end
    accounts[name] = a
  end
  changed[name] = true
  return a
end

local function fill(a)
  local elapsed = now - a.u
  if elapsed <= 0 then
    if elapsed < -SECOND then a.u = now end
    return
  end
  a.u = now
  for i = 1, 4 do
    if a.l[i] >= 0 then a.r[i] = math.min(a.r[i] + elapsed * a.l[i] / PERIOD[i], a.l[i]) end
  end
end

local function follow(a, want)
  for i = 1, 4 do
    local limit = want[i + 1]
    if limit >= 0 and limit ~= a.l[i] then
      if a.l[i] < 0 then
        a.r[i], a.g[i] = limit, limit
      else
        a.r[i], a.g[i], a.c = math.min(a.r[i], limit), math.min(a.g[i], limit), now
      end
      a.l[i] = limit
    end
    if limit > a.g[i] and now - a.c > STEADY then
      a.r[i], a.g[i] = math.min(a.r[i] + limit - a.g[i], limit), limit
    end
  end
end

-- what was spent in a window
local function spent(a, key, w)
  if string.sub(key, 1, 1) == 'm' then return sum(a.mh, a.ml, -w[2], -w[3]) end
  return 0, a.k - w[2]
end

local function begin(a, key, end_s, start_s, h, l)
  if string.sub(key, 1, 1) == 'm' then
    local base_h, base_l = sum(a.mh, a.ml, -h, -l)
    a.w[key] = {end_s, base_h, base_l, start_s}
  else
    a.w[key] = {end_s, a.k - l, start_s}
  end
end

local function start_of(key, w)
  return w[string.sub(key, 1, 1) == 'm' and 4 or 3] or w[1] - 31 * 86400
end

local function ahead(start_s) return start_s * SECOND > now + AHEAD end

local function over(end_s) return end_s ~= 0 and end_s * SECOND <= now end

-- whether the first of two windows takes the other's place. One that is ahead gives way to one that runs
local function follows(end_s, start_s, other_end_s, other_start_s)
  if ahead(start_s) ~= ahead(other_start_s) then
    if ahead(start_s) then return over(other_end_s) end
    return not over(end_s)
  end
  return end_s > other_end_s
end

-- the window of a budget that runs now, nil where nobody can tell yet. A host whose clock is late does not bring back one that is over
local function window(a, which, budget, unsure)
  local key = which .. budget[3]
  local w, end_s, start_s, h, l = a.w[key], budget[4], budget[7], budget[5], budget[6]
  if w == nil or follows(end_s, start_s, w[1], start_of(key, w)) then
    if unsure then return key, nil end
    if w ~= nil and ahead(start_of(key, w)) and not ahead(start_s) then  -- it was spent now, whatever time its host took it for
      local spent_h, spent_l = spent(a, key, w)
      if above(spent_h, spent_l, h, l) then h, l = spent_h, spent_l end
    end
    begin(a, key, end_s, start_s, h, l)
  elseif w[1] == end_s and not unsure then
    if above(h, l, spent(a, key, w)) then begin(a, key, end_s, start_s, h, l) end
  end
  return key, a.w[key]
end

-- whether it is known what the budgets of these have spent
local function known_budgets(wants, unsure)
  for _, want in ipairs(wants) do
    local a = load(want[1])
    for at = 9, 10 do
      if want[at] ~= 0 then
        local _, w = window(a, at == 9 and 'm' or 'k', want[at], unsure)
        if w == nil then return false end
      end
    end
  end
  return true
end

local function refusals(a, want, place, tokens, hi, lo, tell)
  for at = 9, 10 do
    local which, budget = at == 9 and 'm' or 'k', want[at]
    if budget ~= 0 then
      local key = which .. budget[3]
      local w = a.w[key]
      local h, l = spent(a, key, w)
      if which == 'm' then
        h, l = sum(h, l, a.qh, a.ql)
        h, l = sum(h, l, hi, lo)
      else
        l = l + a.qk + tokens
      end
      if above(h, l, budget[1], budget[2]) then
        tell(true, w[1] == 0 and math.huge or math.max(0, w[1] - now / SECOND), which == 'm' and 5 or 6, place)
      end
    end
  end
  for i = 1, 4 do
    local limit, wanted = want[i + 1], i % 2 == 0 and tokens or 1
    if limit >= 0 then
      if i % 2 == 0 and wanted > limit then
        tell(true, math.huge, i - 1, place)
      elseif a.r[i] < wanted then
        tell(false, (limit > 0 and (wanted - a.r[i]) / limit or 1) * PERIOD[i] / SECOND, i - 1, place)
      end
    end
  end
  if want[6] >= 0 and a.n >= want[6] then tell(false, 1, 4, place) end
end

local function duration(seconds)
  if seconds < 1 then return string.format('%dms', seconds * 1000) end
  local whole = math.floor(seconds + 0.999)
  local minutes, rest = math.floor(whole / 60), whole % 60
  if minutes >= 60 then return string.format('%dh%dm%ds', math.floor(minutes / 60), minutes % 60, rest) end
  if minutes > 0 then return string.format('%dm%ds', minutes, rest) end
  return string.format('%ds', rest)
end

local function headers(wants)
  local lines = {}
  for what, name in ipairs({'requests', 'tokens'}) do
    local least, limit, period
    for _, want in ipairs(wants) do
      local a = accounts[want[1]]
      for i = what, 4, 2 do
        if want[i + 1] > 0 and (least == nil or a.r[i] < least) then least, limit, period = a.r[i], want[i + 1], PERIOD[i] / SECOND end
      end
    end
    if least ~= nil then
      lines[#lines + 1] = string.format('x-ratelimit-limit-%s: %.0f\r\nx-ratelimit-remaining-%s: %.0f\r\nx-ratelimit-reset-%s: %s\r\n',
        name, limit, name, math.max(0, math.floor(least)), name, duration((limit - least) * period / limit))
    end
  end
  local percent, of = -1, ''
  for _, want in ipairs(wants) do
    local a = accounts[want[1]]
    for _, budget in ipairs({{'m', want[9], ' '}, {'k', want[10], ' tokens '}}) do
      if want[7] >= 0 and budget[2] ~= 0 then
        local key = budget[1] .. budget[2][3]
        local h, l = spent(a, key, a.w[key])
        local share = math.floor((h * 1000000 + l) * 100 / math.max(1, budget[2][1] * 1000000 + budget[2][2]))
        if share >= want[7] and share > percent then percent, of = share, want[8] .. budget[3] end
      end
    end
  end
  if percent >= 0 then lines[#lines + 1] = string.format('x-budget-warning: %s%d%%\r\n', of, math.min(percent, 999)) end
  return table.concat(lines)
end

local function names(wants)
  local found = {}
  for place, want in ipairs(wants) do found[place] = want[1] end
  return found
end

local function hold(process, permit, tokens, hi, lo, of)
  for _, name in ipairs(of) do
    local a = load(name)
    a.n, a.qk = a.n + 1, a.qk + tokens
    a.qh, a.ql = sum(a.qh, a.ql, hi, lo)
  end
  redis.call('HSET', P .. ':held:' .. process, permit, cmsgpack.pack({tokens, hi, lo, of}))
end

local function reserve(permit, tokens, hi, lo, wants, unsure)
  if not known_budgets(wants, unsure) then return {2} end
  local final, wait, which, place = nil, 0, 0, 0
  for number, want in ipairs(wants) do
    local a = load(want[1])
    fill(a)
    follow(a, want)
    refusals(a, want, number - 1, tokens, hi, lo, function(is_final, wait_s, kind, at)
      if final == nil or (is_final and not final) or (is_final == final and wait_s > wait) then
        final, wait, which, place = is_final, wait_s, kind, at
      end
    end)
  end
  if final ~= nil then
    return {0, headers(wants), which, wait == math.huge and '' or string.format('%.6f', wait), final and 1 or 0, place}
  end
  for _, want in ipairs(wants) do
    local a = accounts[want[1]]
    for i = 1, 4 do a.r[i] = a.r[i] - (i % 2 == 0 and tokens or 1) end
  end
  hold(me, permit, tokens, hi, lo, names(wants))
  return {1, headers(wants)}
end

local function spend(a, tokens, hi, lo)
  a.k = a.k + tokens
  a.mh, a.ml = sum(a.mh, a.ml, hi, lo)
end

local function settle(process, permit, tokens, hi, lo)
  local stored = redis.call('HGET', P .. ':held:' .. process, permit)
  if not stored then return end
  local held = cmsgpack.unpack(stored)
  for _, name in ipairs(held[4]) do
    local a = load(name)
    a.n, a.qk = a.n - 1, a.qk - held[1]
    a.qh, a.ql = sum(a.qh, a.ql, -held[2], -held[3])
    if tokens < 0 then spend(a, held[1], held[2], held[3]) else spend(a, tokens, hi, lo) end
    if tokens >= 0 then
      for i = 2, 4, 2 do
        a.r[i] = a.r[i] + held[1] - tokens
        if a.l[i] >= 0 then a.r[i] = math.min(a.r[i], a.l[i]) end
      end
    end
  end
  redis.call('HDEL', P .. ':held:' .. process, permit)
end

-- a process is dead: its slots are free, its reservations count as used. What it held is kept a while, should it come back after all
local function give_back(process)
  local held = P .. ':held:' .. process
  if redis.call('EXISTS', held) == 1 then
    local copy = redis.call('HGETALL', held)
    for i = 1, #copy, 2 do settle(process, copy[i], -1, 0, 0) end
    for i = 1, #copy, 2 do redis.call('HSET', P .. ':gone:' .. process, copy[i], copy[i + 1]) end
    redis.call('PEXPIRE', P .. ':gone:' .. process, 3600000)
  end
  redis.call('DEL', P .. ':process:' .. process)
  redis.call('SREM', P .. ':processes', process)
end

local function sweep(was_still)
  local mine = tonumber(redis.call('HGET', P .. ':process:' .. me, 'again') or 0)
  local patience = now - mine < 2 * GONE_AFTER_BREAK and GONE_AFTER_BREAK or GONE  -- all connections broke, not this one alone
  for _, process in ipairs(redis.call('SMEMBERS', P .. ':processes')) do
    local key = P .. ':process:' .. process
    local seen, missing = unpack(redis.call('HMGET', key, 'seen', 'missing'))
    seen, missing = tonumber(seen or 0), tonumber(missing or 0)
    if was_still then
      seen, missing = now, 0
      redis.call('HSET', key, 'seen', now, 'missing', 0)
    end
    if redis.call('PUBSUB', 'NUMSUB', P .. ':alive:' .. process)[2] > 0 then
      if missing > 0 then redis.call('HSET', key, 'missing', 0) end
    elseif missing == 0 then
      redis.call('HSET', key, 'missing', now)
    elseif now - missing > patience and now - seen > patience then
      give_back(process)
    end
    if now - seen > LEASE then give_back(process) end
  end
end

local function join(known, permits, older)
  local key, held = P .. ':process:' .. me, P .. ':held:' .. me
  local state = redis.call('HGET', P .. ':state', 'id')
  if not state then
    state = me .. '-' .. session
    redis.call('HSET', P .. ':state', 'id', state, 'born', now, 'lost', known ~= '' and 1 or 0)
  elseif known ~= '' and known ~= state then
    redis.call('HSET', P .. ':state', 'lost', 1)
  elseif older then  -- this server was put back to what it knew a while ago: another state, of which all tell what they saw
    state = me .. '-' .. session
    redis.call('HSET', P .. ':state', 'id', state, 'born', now, 'lost', 1)
    for _, process in ipairs(redis.call('SMEMBERS', P .. ':processes')) do redis.call('HDEL', P .. ':process:' .. process, 'session') end
  end
  redis.call('HSET', key, 'session', session, 'seen', now, 'missing', 0, 'again', known ~= '' and now or 0)
  redis.call('SADD', P .. ':processes', me)
  local listed = {}
  for _, permit in ipairs(permits) do
    local id, tokens, hi, lo, of, used = unpack(permit)
    listed[id] = true
    local gone = redis.call('HGET', P .. ':gone:' .. me, id)
    if redis.call('HEXISTS', held, id) == 0 and (gone or used < 0 or known ~= state) then
      if gone then
        for _, name in ipairs(of) do spend(load(name), -tokens, -hi, -lo) end
        redis.call('HDEL', P .. ':gone:' .. me, id)
      end
      hold(me, id, tokens, hi, lo, of)
    end
    if used >= 0 then settle(me, id, used, permit[7], permit[8]) end
  end
  for _, id in ipairs(redis.call('HKEYS', held)) do  -- whose answers were lost: nobody goes on with them
    if not listed[id] then settle(me, id, 0, 0, 0) end
  end
  return state
end

-- of a state that was lost each process tells what it saw last: the least that can be left, and the most that was spent
local function restore(name, packed)
  local old, a = cmsgpack.unpack(packed), load(name)
  fill(a)
  fill(old)
  for i = 1, 4 do
    if a.l[i] < 0 then
      a.l[i], a.g[i], a.r[i] = old.l[i], old.g[i], old.r[i]
    elseif old.l[i] >= 0 then
      a.r[i] = math.min(a.r[i], old.r[i])
    end
  end
  local known = {}
  for _, of in ipairs({a, old}) do
    for key, w in pairs(of.w) do
      local h, l = spent(of, key, w)
      local other, start_s = known[key], start_of(key, w)
      if other == nil or follows(w[1], start_s, other[1], other[2]) or (w[1] == other[1] and above(h, l, other[3], other[4])) then
        known[key] = {w[1], start_s, h, l}
      end
    end
  end
  if above(old.mh, old.ml, a.mh, a.ml) then a.mh, a.ml = old.mh, old.ml end
  a.k = math.max(a.k, old.k)
  for key, w in pairs(known) do begin(a, key, w[1], w[2], w[3], w[4]) end
end

local function lives(a)
  local seconds = a.n > 0 and 86400 or 600
  if a.l[3] >= 0 or a.l[4] >= 0 then seconds = 2 * 86400 end
  for i = 1, 4 do  -- what is owed stays so until it is paid
    if a.r[i] < 0 and a.l[i] > 0 then seconds = math.max(seconds, (a.l[i] - a.r[i]) / a.l[i] * PERIOD[i] / SECOND) end
  end
  seconds = math.min(seconds, MOST_LIVES_S)
  for _, w in pairs(a.w) do
    if w[1] == 0 then return nil end
    seconds = math.max(seconds, w[1] - now / SECOND + 86400)
  end
  return seconds
end

local answers, i = {}, 2
local joined = redis.call('HGET', P .. ':process:' .. me, 'session') == session
if joined then
  redis.call('HSET', P .. ':process:' .. me, 'seen', now)
elseif #ARGV == 1 then
  return 'join'
end
local state = redis.call('HMGET', P .. ':state', 'born', 'lost', 'swept')
local gathering = state[2] == '1' and now - (tonumber(state[1]) or 0) < GATHER
while i <= #ARGV do
  local op = cjson.decode(ARGV[i])
  local what, answer = op[1], 1
  if what == 'hello' then
    answer = redis.call('HGET', P .. ':state', 'id') or ''
  elseif what == 'state' then
    i = i + 1
    restore(op[2], ARGV[i])
  elseif what == 'join' then
    answer = join(op[2], op[3], op[4] == 1)
    joined = true
  elseif not joined then
    return 'join'
  elseif what == 'reserve' then
    answer = gathering and {2} or reserve(op[2], op[3], op[4], op[5], op[6], op[7] == 1)
  elseif what == 'settle' then
    settle(me, op[2], op[3], op[4], op[5])
  elseif what == 'spent' then
    spend(load(op[2]), op[3], op[4], op[5])
  elseif what == 'leave' then
    give_back(me)
  end
  answers[#answers + 1] = answer
  i = i + 1
end
local swept = tonumber(state[3]) or 0
if joined and now - swept > SWEEP then
  redis.call('HSET', P .. ':state', 'swept', now)
  sweep(now - swept > STILL)
end
local step = joined and redis.call('HINCRBY', P .. ':state', 'step', 1) or tonumber(redis.call('HGET', P .. ':state', 'step') or 0)
local reply = {answers, step}
for name in pairs(changed) do
  local a = accounts[name]
  local packed, seconds = cmsgpack.pack(a), lives(a)
  if seconds then
    redis.call('SET', P .. ':account:' .. name, packed, 'EX', math.ceil(seconds))
  else
    redis.call('SET', P .. ':account:' .. name, packed)
  end
  reply[#reply + 1] = name
  reply[#reply + 1] = packed
end
return reply
