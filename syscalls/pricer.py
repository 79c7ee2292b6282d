"""Pricer: sends what jinja2's sandbox is not asked about through filters that make it pay.

Loops, the bodies of macros, literals, slices, comparisons and ~ are compiled into Python directly;
here they become filters of template.py's sandbox before that. A body's price is the number of its
nodes, so that what a round of a loop costs is bounded by what it was paid for.
"""

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

NODE = 4


class Excess(Exception):
    """The template says no, or wants more than it may have."""


def priced(tree: nodes.Template) -> nodes.Template:
    """Make loops, bodies, literals, slices, comparisons and ~ pay."""
    for loop in tree.find_all(nodes.For):
        if loop.recursive:
            raise Excess("it has a recursive loop, which is not built")
    return _Pricer().visit(tree)  # type: ignore[no-any-return]


class _Pricer(NodeTransformer):
    def visit_For(self, node: nodes.For) -> nodes.Node:
        price = _price(node)
        self.generic_visit(node)
        node.iter = _through("rounds", node.iter, price)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        price = _price(node)
        self.generic_visit(node)
        pay = nodes.ExprStmt(_through("paid", price), lineno=node.lineno)
        node.body.insert(0, pay)
        return node

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self.visit_Macro(node)  # type: ignore[arg-type]  # its body is the caller's

    def visit_Block(self, node: nodes.Block) -> nodes.Node:
        return self.visit_Macro(node)  # type: ignore[arg-type]  # self.name() runs it again

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        operands = nodes.List(node.nodes, lineno=node.lineno, environment=node.environment)
        return _through("concat", operands)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        """Constants need not pay: what they are compared with does."""
        self.generic_visit(node)
        node.expr = _sized(node.expr)
        for operand in node.ops:
            operand.expr = _sized(operand.expr)
        return node

    def visit_List(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _through("sized", node)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self.visit_List(node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _through("sized", node) if isinstance(node.arg, nodes.Slice) else node


def _price(node: nodes.Node) -> nodes.Const:
    count = sum(1 for _ in node.find_all(nodes.Node))
    return nodes.Const(NODE * count, lineno=node.lineno, environment=node.environment)


def _sized(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _through("sized", node)


def _through(name: str, node: nodes.Node, *args: nodes.Expr) -> nodes.Filter:
    """Return the node as a filter gives it back."""
    return nodes.Filter(
        node, name, list(args), [], None, None, lineno=node.lineno, environment=node.environment
    )
