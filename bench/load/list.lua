-- Requests from a list, in its order, once or repeatedly. wrk -s list.lua URL -- LIST once|again

dofile("counting.lua")
local list, next_one, once = {}, 0, false

function init(args)
  list = dofile(args[1])
  once = args[2] == "once"
end

function request()
  if next_one == 0 then started_at = microseconds() end
  if once and next_one == #list and ended_at == 0 then
    ended_at = microseconds()
    wrk.thread:stop()
  end
  next_one = next_one % #list + 1
  local each = list[next_one]
  return wrk.format(each.method, each.path, { ["Authorization"] = "Bearer " .. each.key })
end

function response(status)
  if ended_at == 0 then count(status) end
end
