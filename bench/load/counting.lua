-- Counts of all scripts, printed as one line of JSON at the end.

local ffi = require("ffi")
ffi.cdef("typedef struct { long seconds, nanoseconds; } moment; int clock_gettime(int clock, moment *now);")
local moment = ffi.new("moment")
local threads = {}

statuses, accepted = {}, 0 -- per thread; `accepted` counts new orders: 201, by themselves or in a batch
places = {} -- microseconds of each accepted order, measured with a single connection only
started_at, ended_at = 0, 0 -- set by a script that ends before its time

function microseconds()
  ffi.C.clock_gettime(1, moment) -- 1: CLOCK_MONOTONIC
  return tonumber(moment.seconds) * 1e6 + tonumber(moment.nanoseconds) / 1e3
end

function setup(thread)
  thread:set("number", #threads)
  table.insert(threads, thread)
end

function count(status)
  statuses[status] = (statuses[status] or 0) + 1
end

function done(summary, latency)
  local all, total, times, seconds = {}, 0, {}, summary.duration / 1e6
  for _, thread in ipairs(threads) do
    total = total + thread:get("accepted")
    for status, number in pairs(thread:get("statuses")) do all[status] = (all[status] or 0) + number end
    for _, time in ipairs(thread:get("places")) do table.insert(times, time) end
    if thread:get("ended_at") > 0 then seconds = (thread:get("ended_at") - thread:get("started_at")) / 1e6 end
  end
  local counts = {}
  for status, number in pairs(all) do table.insert(counts, string.format('"%d":%d', status, number)) end
  table.sort(times)
  local errors = summary.errors -- without `status`: rejections, which `statuses` counts by number
  io.write(string.format(
    'RESULT {"seconds":%f,"accepted":%d,"statuses":{%s},"p50_ms":%f,"p99_ms":%f,"place_p50_ms":%f,"lost":%d}\n',
    seconds, total, table.concat(counts, ","), latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    (times[math.ceil(#times / 2)] or 0) / 1e3, errors.connect + errors.read + errors.write + errors.timeout
  ))
end
