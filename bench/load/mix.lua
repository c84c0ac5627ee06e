-- The mix: about two thirds new orders, one third cancels of earlier orders.
-- wrk -s mix.lua URL -- WORLD SYMBOLS SEED CLIENTS

dofile("counting.lua")
local orders = dofile("orders.lua")

local RESTING_MIN = 20 -- resting orders per thread, before any cancel
local CANCELS = 0.36 -- share of the requests
local resting, is_single_client, sent_at = {}, false, 0

function init(args)
  orders.start(args[1], args[2], args[3] + number)
  is_single_client = args[4] == "1"
end

local function cancel()
  local index = math.random(#resting)
  local order = resting[index]
  resting[index] = resting[#resting]
  resting[#resting] = nil
  return wrk.format("DELETE", "/orders/" .. order.id, orders.headers(order.key))
end

function request()
  if is_single_client then sent_at = microseconds() end
  if #resting > RESTING_MIN and math.random() < CANCELS then return cancel() end
  local broker = orders.broker()
  return wrk.format("POST", "/orders", orders.headers(broker.key), orders.new(broker, 10))
end

function response(status, headers, body)
  count(status)
  if status ~= 201 then return end
  accepted = accepted + 1
  if is_single_client then table.insert(places, microseconds() - sent_at) end
  local state = body:match('"status":%s*"([a-z_]+)"')
  if state == "pending" or state == "partially_filled" then
    local key = orders.keys[body:match('"broker_id":%s*"([^"]+)"')]
    table.insert(resting, { id = body:match('"order_id":%s*"([^"]+)"'), key = key })
  end
end
