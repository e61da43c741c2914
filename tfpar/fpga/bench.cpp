// Sends the bytes of standard input into the circuit, one at each clock, and goes on for REST clocks.
#include "Vbench.h"
#include <cstdio>
double sc_time_stamp() { return 0; }
int main() {
    Vbench bench;
    for (int byte, rest = REST; (byte = getchar()) != EOF || rest-- > 0;) {
        bench.valid = byte != EOF;
        bench.pixel = byte & 255;
        bench.clk = 0;
        bench.eval();
        bench.clk = 1;
        bench.eval();
    }
}
