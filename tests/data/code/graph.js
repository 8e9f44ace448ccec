#!/usr/bin/env node
// Größe 🙂: a small graph, with its nodes and edges.
import fs, { readFile as read, join } from "fs";
import * as path from './path';
import "./polyfill";
export { default as Heap, heapify } from "./heap";
export * from "./search";
const util = require("util"), { inspect, format: fmt } = require('util/inspect');

const LIMIT = 10; // a trailing comment

/**
 * Adds two numbers — „zusammen“.
 * @returns {number}
 */
export function add(a, b = { x: 1 }) {
  // first
  return plus(a, b);
}

/* far away */

// near one
// near two
export default class Graph extends Base {
  #edges = new Map();
  static count = 0;

  constructor(nodes) {
    super();
    this.nodes = nodes;
  }

  /** One more. */
  @logged addEdge(from, to) {
    if (!from) return null;
    else this.#edges.set(from, to);
    for (let i = 0; i < LIMIT; i++) touch(i);
    const weigh = async (x) => { await x.weight(); };
    label: while (true) { break label; }
    return weigh;
  }

  onChange = (event) => this.notify(event.target);
  get size() { return this.nodes.length; }
  empty() {}
  static { register(Graph); }
}

const Inner = class { deep() { class Deeper { deepest() { return 日本語(); } } return new Deeper(); } };
const square = x => x * x;
var one = function () { return 1; }, two = () => 2;
Graph.prototype.walk = function* (start) { yield* visit(start); };
const handlers = { click(event) { go(event); }, "key-down": (e) => stop(e), [computed]: () => 1 };
function* generate() { switch (kind) { case 1: first(); break; default: { last(); } } }
const view = () => <Panel title="é">{add(1, 2)}</Panel>;
