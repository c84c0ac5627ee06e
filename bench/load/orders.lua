-- Orders of the mix, from a world written by `bench.wrk`: symbols with their mid prices, brokers with their keys.
-- bench/mix.py is the same in Python, for the open loop.

local orders = {}
local world, symbols, prefix, count = nil, 16, "", 0

function orders.start(path, symbol_count, seed)
  world, symbols, prefix = dofile(path), tonumber(symbol_count), seed
  math.randomseed(seed)
  orders.world = world
  orders.keys = {}
  for _, broker in ipairs(world.brokers) do orders.keys[broker.id] = broker.key end
end

function orders.symbol()
  return world.symbols[math.random(math.min(symbols, #world.symbols))]
end

function orders.broker()
  return world.brokers[math.random(#world.brokers)]
end

-- All clients see the same prices, which move by ± 30 ticks within about a minute, each symbol with its own phase.
local function mid(symbol)
  return symbol.mid + math.floor(30 * math.sin(os.time() / 10 + #symbol.name + symbol.mid)) / 100
end

local function validity()
  local draw = math.random()
  if draw < 0.7 then return '"time_in_force":"gtc"' end
  if draw < 0.9 then return '"time_in_force":"day"' end
  return os.date('!"expires_at":"%Y-%m-%dT%H:%M:%SZ"', os.time() + 3600)
end

-- Returns one order of `broker` as JSON. Resting orders are `large` times as large as takers: 10 if resting orders are
-- cancelled (each meets many small takers), 1 without cancels, so that the book does not grow.
function orders.new(broker, large)
  local symbol, bid = orders.symbol(), math.random() < 0.5
  local better = bid and 1 or -1 -- the direction in which a price crosses
  local price, quantity, fields = mid(symbol) + better * 0.05, math.random(10, 100), validity()
  local draw = math.random()
  if draw < 0.5 then -- rests
    price, quantity = mid(symbol) - better * math.random(20) / 100, math.floor(quantity * large)
  elseif draw < 0.92 then -- crosses
  elseif draw < 0.95 then
    price, fields = nil, '"type":"market"'
  elseif draw < 0.97 then
    fields = '"time_in_force":"ioc"'
  elseif draw < 0.985 then
    bid, quantity = false, 1000000000000 -- more shares than any broker has: 409
  else
    price = price + 0.005 -- off the tick: 400
  end
  if price then fields = string.format('%s,"price":%.3f', fields, price) end
  if math.random() < 0.5 then
    count = count + 1
    fields = string.format('%s,"client_order_id":"%s-%d"', fields, prefix, count)
  end
  return string.format(
    '{"broker_id":"%s","document_number":"12345678900","side":"%s","symbol":"%s","quantity":%d,%s}',
    broker.id, bid and "bid" or "ask", symbol.name, quantity, fields
  )
end

function orders.headers(key)
  return { ["Authorization"] = "Bearer " .. key, ["Content-Type"] = "application/json" }
end

return orders
