/* Größe 🙂 */
#include <stdio.h>
#include "graph.h"
#define LIMIT 10

#ifdef FAST
static int speed = 1;
#else
static int speed = 2;
#endif

/* A node — „Knoten“. */
struct node {
    int id;
    struct node *next;
};

typedef struct {
    struct node *first;
    int (*visit)(int);
} graph_t;

enum kind { DIRECTED, UNDIRECTED };
typedef union { int i; float f; } number; // no comment of what follows
int add_edge(graph_t *graph, int from);
static int (*callback)(int);
extern int size, other;

// Adds.
// One.
static int *add_node(graph_t *graph, int id)
{
    /* first */
    struct node *new = make_node(id, "é日本");
    if (!new) return NULL;
    else graph->first = new;
    for (int i = 0; i < LIMIT; i++) graph->visit(i);
    while (new->next) { new = new->next; }
    do step(new); while (0);
    switch (id) { case 1: one(); break; default: other(); }
out:
    free(new);
    return &new->id;
}

void empty(void) {}
