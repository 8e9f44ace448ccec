// Package graph — Größe 🙂.
package graph

import (
	"fmt"
	str "strings"
)
import "os"

// Graph holds edges.
// It is a graph.
type Graph[T any] struct {
	nodes []T // the nodes
	edges map[string]int
}

type (
	Walker interface {
		// Walk goes on.
		Walk(from string) error
	}
	Pair struct{ a, b int }
)

type Number int

// New makes one.
func New() *Graph[int] {
	return &Graph[int]{}
}

// AddEdge — „hinzufügen“.
func (g *Graph[T]) AddEdge(from, to string) (err error) {
	// first
	key := fmt.Sprintf("%s→%s", from, to)
	if n, ok := g.edges[key]; ok {
		g.edges[key] = n + 1
	} else if len(g.nodes) == 0 {
		return fmt.Errorf("leer")
	} else {
		g.edges[key] = 1
	}
	switch x := interface{}(key).(type) {
	case string:
		use(x)
	default:
		str.ToUpper(key); os.Exit(1)
	}
	for _, node := range g.nodes {
		go func() { visit(node) }()
	}
	return nil
}

func (Pair) Empty() {}
func assembly(x int) int
