// Größe 🙂
package org.example.graph;

import java.util.List;
import java.util.concurrent.*;
import static org.junit.Assert.assertEquals;

/**
 * A graph — „Größe“.
 */
@Deprecated
public abstract class Graph<T extends Comparable<T>> extends Base implements Walker {
    private final List<T> nodes = new java.util.ArrayList<>();
    static { register("日本"); }

    /** Makes one. */
    public Graph(int größe) {
        super(größe);
        this.init();
    }

    // Adds.
    // One.
    @Override
    @SuppressWarnings("unchecked")
    public <E> int addEdge(T from, T to) throws Exception {
        // first
        if (from == null) return 0;
        else if (to == null) throw new IllegalArgumentException("leer");
        for (int i = 0; i < 3; i++) visit(i);
        for (T node : nodes) { node.compareTo(to); }
        switch (size()) { case 1: one(); break; default: other(); }
        int x = switch (kind) { case A -> 1; default -> { yield 2; } };
        Runnable r = () -> { run(); };
        label: while (true) { break label; }
        do { x++; } while (x < 3);
        return new Object() { int inner() { return deep(); } }.inner();
    }

    abstract void walk(int from);

    interface Visitor<V> { void accept(V v); default void twice(V v) { accept(v); accept(v); } }
    enum Kind { DIRECTED, UNDIRECTED { int weight() { return 2; } }; int weight() { return 1; } }
    record Pair(int a, int b) { Pair { check(a); } }
    @interface Marked { String value() default ""; }
    class Empty {}
}
