-- New orders, many per request. wrk -s batch.lua URL -- WORLD SYMBOLS SEED ORDERS_PER_REQUEST

dofile("counting.lua")
local orders = dofile("orders.lua")
local size = 1

function init(args)
  orders.start(args[1], args[2], args[3] + number)
  size = tonumber(args[4])
end

function request()
  local broker, list = orders.broker(), {}
  for index = 1, size do list[index] = orders.new(broker, 1) end
  local body = '{"orders":[' .. table.concat(list, ",") .. "]}"
  return wrk.format("POST", "/orders/batch", orders.headers(broker.key), body)
end

function response(status, headers, body)
  count(status)
  local from = 1
  while from do
    local _, last = body:find('"status":201', from, true)
    if last then accepted = accepted + 1 end
    from = last
  end
end
