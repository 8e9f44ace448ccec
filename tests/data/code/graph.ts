import type { Node } from "./node";
import fs = require("fs");
import Default, { type Edge, weight } from "../größe";

/** A weight — „Größe“ 🙂. */
export interface Weighted<T> {
  weight: number;
  /** How far. */
  distance(to: T): number;
}

export enum Kind { Directed, Undirected }

export function pick(a: string): string;
export function pick(a: number): number;
export function pick(a: any): any {
  return choose(a as Weighted<any>);
}

// The graph.
@sealed
@registered("graph")
export abstract class Graph<T extends Node> implements Weighted<T> {
  private readonly nodes: T[] = [];
  constructor(private name: string) {}
  abstract walk(): void;

  // Looked at.
  @memo({ size: 1 })
  public async distance(to: T): Promise<number> {
    const [first] = this.nodes;
    return (await first!.path(to)) satisfies number;
  }

  handler: (e: Event) => void = (e) => { this.emit(e); };
}

namespace Util {
  export const twice = <T,>(x: T): T[] => [x, x];
  export function once(): void {}
}

declare function outside(x: number): string;
type Fn = (x: number) => void;
