/** Mistakes that the generated types must find: `tsc` fails if a line below the comment has no error. */

import type { Exchange, Schemas } from "./trade.js";

export const order: Schemas["PlaceOrderForm"] = {
  broker_id: "broker-1",
  document_number: "12345678900",
  side: "bid",
  symbol: "AAPL",
  price: "150.25",
  quantity: 100,
  time_in_force: "gtc",
};

export const forms: Schemas["PlaceOrderForm"][] = [
  // @ts-expect-error -- an unknown field
  { ...order, amount: 100 },
  // @ts-expect-error -- not one of the sides
  { ...order, side: "buy" },
  // @ts-expect-error -- a quantity is a number
  { ...order, quantity: "100" },
  // @ts-expect-error -- required fields are missing
  { broker_id: "broker-1" },
];

export async function read(client: Exchange): Promise<void> {
  const { data, error } = await client.POST("/orders", { body: order });
  // @ts-expect-error -- a problem has no order
  data.order_id.trim();
  // @ts-expect-error -- an unknown property
  data?.filled.toFixed();
  // @ts-expect-error -- the average price is null without trades
  data?.average_price.toFixed();
  // @ts-expect-error -- an unknown property
  error?.message.trim();
  // @ts-expect-error -- a parameter of the path is missing
  await client.GET("/orders/{order_id}");
  // @ts-expect-error -- an unknown path
  await client.GET("/order");
}
