/**
 * A day of trading, with the types that openapi-typescript generates from /openapi.json and the client openapi-fetch.
 *
 *     node trade.js http://127.0.0.1:8000 OPERATOR_KEY
 *
 * An operator admits two brokers, which subscribe, trade, read and cancel. Every response is checked. Every run trades a
 * new symbol, so it can be repeated.
 */

import createClient, { type Client } from "openapi-fetch";
import type { components, paths } from "./schema.js";

export type Schemas = components["schemas"];
export type Exchange = Client<paths>;

declare const process: { argv: string[] };

/** Return a client that sends the key with every request. */
function clientWith(baseUrl: string, key: string): Exchange {
  return createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${key}` } });
}

/** Return the body of a successful response, or throw the problem. */
function accepted<Body>({ data, error }: { data?: Body; error?: Schemas["Problem"] }): Body {
  if (data === undefined) throw new Error(`${error?.code}: ${error?.detail}`);
  return data;
}

function expectEqual(actual: unknown, expected: unknown): void {
  const [found, wanted] = [JSON.stringify(actual), JSON.stringify(expected)];
  if (found !== wanted) throw new Error(`expected ${wanted}, found ${found}`);
}

class Broker {
  constructor(
    readonly client: Exchange,
    readonly brokerId: string,
  ) {}

  /** Place an order that is good till cancelled. A string is an exact price in every language. */
  async place(side: Schemas["Side"], quantity: number, price: string, symbol: string): Promise<Schemas["OrderBody"]> {
    const body: Schemas["PlaceOrderForm"] = {
      broker_id: this.brokerId,
      document_number: "12345678900",
      side,
      symbol,
      quantity,
      price,
      time_in_force: "gtc",
      client_order_id: crypto.randomUUID(), // with it, a request without a response can be repeated
    };
    return accepted(await this.client.POST("/orders", { body }));
  }

  /** Return the ids of all its orders, newest first, page by page. */
  async orderIds(): Promise<string[]> {
    const ids: string[] = [];
    let cursor: string | undefined;
    do {
      const params = { path: { broker_id: this.brokerId }, query: { limit: 1, cursor } };
      const page: Schemas["OrderPage"] = accepted(await this.client.GET("/brokers/{broker_id}/orders", { params }));
      ids.push(...page.orders.map((order) => order.order_id));
      cursor = page.next_cursor ?? undefined;
    } while (cursor !== undefined);
    return ids;
  }
}

async function trade(baseUrl: string, operatorKey: string): Promise<void> {
  const run = crypto.randomUUID().slice(0, 8).toUpperCase();
  const symbol = `TS.${run}`;
  const operator = clientWith(baseUrl, operatorKey);
  const seller = await admit(baseUrl, operator, {
    broker_id: `ts-seller-${run}`,
    initial_cash: "0",
    initial_holdings: [{ symbol, quantity: 1000 }],
  });
  const buyer = await admit(baseUrl, operator, { broker_id: `ts-buyer-${run}`, initial_cash: "100000.25" });

  await subscribeAndUnsubscribe(seller);

  const ask = await seller.place("ask", 500, "148.00", symbol);
  const bid = await buyer.place("bid", 300, "150.00", symbol); // trades at the seller's price
  expectEqual([ask.status, bid.status, bid.filled_quantity], ["pending", "filled", 300]);
  expectEqual(
    bid.trades.map((fill) => [fill.price, fill.quantity]),
    [[148, 300]],
  );

  await readBack(seller, buyer, ask, symbol);

  const resting = await seller.place("ask", 100, "155.10", symbol);
  await cancel(seller, resting);
  expectEqual(await seller.orderIds(), [resting.order_id, ask.order_id]);
}

async function admit(baseUrl: string, operator: Exchange, body: Schemas["CreateBrokerForm"]): Promise<Broker> {
  const admitted = accepted(await operator.POST("/brokers", { body }));
  return new Broker(clientWith(baseUrl, admitted.api_key), admitted.broker_id); // the key is shown only here
}

/** Register a webhook and delete it. */
async function subscribeAndUnsubscribe({ client, brokerId }: Broker): Promise<void> {
  const body: Schemas["SubscribeForm"] = {
    broker_id: brokerId,
    url: "http://127.0.0.1:9/",
    events: ["trade.executed"],
  };
  const { webhooks } = accepted(await client.POST("/webhooks", { body }));
  expectEqual(
    webhooks.map((webhook) => webhook.event),
    body.events,
  );

  for (const { webhook_id } of webhooks) {
    const { response } = await client.DELETE("/webhooks/{webhook_id}", { params: { path: { webhook_id } } });
    expectEqual(response.status, 204);
  }
  const query = { broker_id: brokerId };
  expectEqual(accepted(await client.GET("/webhooks", { params: { query } })).webhooks, []);
}

/** Read the order, the book and the balance after the trade. */
async function readBack(seller: Broker, buyer: Broker, ask: Schemas["OrderBody"], symbol: string): Promise<void> {
  const orderPath = { order_id: ask.order_id };
  const order = accepted(await seller.client.GET("/orders/{order_id}", { params: { path: orderPath } }));
  expectEqual([order.status, order.filled_quantity, order.remaining_quantity], ["partially_filled", 300, 200]);

  const book = accepted(await buyer.client.GET("/stocks/{symbol}/book", { params: { path: { symbol } } }));
  expectEqual([book.bids, book.asks], [[], [{ price: 148, total_quantity: 200, order_count: 1 }]]);

  const brokerPath = { broker_id: buyer.brokerId };
  const balance = accepted(await buyer.client.GET("/brokers/{broker_id}/balance", { params: { path: brokerPath } }));
  expectEqual([balance.cash_balance, balance.holdings[0]?.quantity], [55600.25, 300]); // 100,000.25 - 300 * 148.00
}

/** Cancel the order. A repeated cancel is rejected. */
async function cancel({ client }: Broker, order: Schemas["OrderBody"]): Promise<void> {
  const options = { params: { path: { order_id: order.order_id } } };
  const cancelled = accepted(await client.DELETE("/orders/{order_id}", options));
  expectEqual([cancelled.status, cancelled.cancel_reason], ["cancelled", "by_broker"]);

  const again = await client.DELETE("/orders/{order_id}", options);
  expectEqual([again.response.status, again.error?.code], [409, "order_not_cancellable"]);
}

const [baseUrl = "", operatorKey = ""] = process.argv.slice(2);
await trade(baseUrl, operatorKey);
