# gnuplot latency.gp
set encoding utf8
set title 'Latency against batch' noenhanced
set xlabel 'requests under way' noenhanced
set ylabel 'seconds' noenhanced
set key below noenhanced
set grid
set style fill solid 0.8 border -1
set datafile missing 'NaN'
set logscale x 2
set logscale y 10
set terminal svg noenhanced size 800,480
set output 'latency.svg'
plot 'latency.dat' index 0 using 1:2 with linespoints lw 2 pt 7 ps 0.6 title 'whole answer, p50', \
     'latency.dat' index 1 using 1:2 with linespoints lw 2 pt 7 ps 0.6 title 'whole answer, p99', \
     'latency.dat' index 2 using 1:2 with linespoints lw 2 pt 7 ps 0.6 title 'first token, p50', \
     'latency.dat' index 3 using 1:2 with linespoints lw 2 pt 7 ps 0.6 title 'first token, p99'
set terminal pngcairo noenhanced size 800,480
set output 'latency.png'
plot 'latency.dat' index 0 using 1:2 with linespoints lw 2 pt 7 ps 0.6 title 'whole answer, p50', \
     'latency.dat' index 1 using 1:2 with linespoints lw 2 pt 7 ps 0.6 title 'whole answer, p99', \
     'latency.dat' index 2 using 1:2 with linespoints lw 2 pt 7 ps 0.6 title 'first token, p50', \
     'latency.dat' index 3 using 1:2 with linespoints lw 2 pt 7 ps 0.6 title 'first token, p99'
unset output
