// SPDX-License-Identifier: Apache-2.0
/*
 * Says where it is: templates, namespaces, lambdas, inlined members.
 */
#include "symbol_places.h"

namespace shop
{

template <typename T> struct Box {
	T value;
	NOINLINE T add(T other)
	{
		PLACE("add");
		return value + other;
	}
	__attribute__((always_inline)) T twice(T other)
	{
		PLACE("twice");
		return value * other;
	}
};

namespace
{
NOINLINE int unnamed(int number)
{
	PLACE("unnamed");
	return number + 1;
}
} // namespace

NOINLINE int order(Box<int> &box, int number)
{
	printf("caller order 0 %d\n", __LINE__ + 1);
	return box.twice(number) + unnamed(number);
}

} // namespace shop

int main()
{
	shop::Box<int> box{3};
	shop::Box<double> other{3.0};
	int sum = box.add(5) + shop::order(box, 7) + static_cast<int>(other.add(2.5));
	printf("sum %d 0 0\n", sum);
	return finish();
}
